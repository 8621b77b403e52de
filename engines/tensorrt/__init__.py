"""TensorRT and TensorRT-RTX: compiling engines, the record of what they are for, and running them."""
