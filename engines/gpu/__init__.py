"""The shared part of backends on NVIDIA GPUs: memory, streams, the cache on the device, and runs bound to it."""
