"""The part that all backends on NVIDIA GPUs share: device memory and the stream, bound arrays, steps and the cache."""
