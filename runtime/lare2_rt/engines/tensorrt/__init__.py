"""TensorRT, native."""
