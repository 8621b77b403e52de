"""From ONNX graphs to something that runs: one file per backend."""
