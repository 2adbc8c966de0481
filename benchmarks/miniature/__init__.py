"""The paper on a small scale, from photographs to its tables."""
