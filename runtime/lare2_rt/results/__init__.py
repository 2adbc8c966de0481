"""Detections in files: one table of columns, a writer for each format, files that can be resumed."""
