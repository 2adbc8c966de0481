"""The engines on this machine, measured side by side."""
