"""From a PyTorch checkpoint to a bundle of three ONNX graphs."""
