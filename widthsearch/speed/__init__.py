"""Latency, measured and modelled."""
