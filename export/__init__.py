"""Export of a PyTorch checkpoint to a bundle of three ONNX graphs."""
