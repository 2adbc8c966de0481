"""From a folder to a verified bundle."""
