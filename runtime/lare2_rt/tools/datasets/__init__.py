"""Labelled sets of images: from a folder or a list to an index, its splits, its audit."""
