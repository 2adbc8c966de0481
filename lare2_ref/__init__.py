"""LaRE² in plain PyTorch: the reference that the engine is measured against, and the home of training."""
