"""What backends on NVIDIA GPUs share: memory, streams, the cache on the device, and runs bound to it."""
