"""How far graphs are from the reference, and whether that is allowed."""
