"""Detections in files: a writer for each format, files that can be resumed."""
