"""A result that leaves the tool: widths, weights, ONNX, what to type."""
