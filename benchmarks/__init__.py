"""Measurements behind the numbers in the documentation; each runs as ``python -m benchmarks.NAME``."""
