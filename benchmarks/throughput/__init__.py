"""Every engine and its peers beside the eager reference, in turns."""
