"""Tables of the documentation from committed results."""
