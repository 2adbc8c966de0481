"""What a GPU proves: every engine on one, with parity, in one report."""
