"""From weights to a bundle in its place."""
