"""Pruners other than gates, and all of them on one over-wide network: scores of units and of weights."""
