"""What a result rests on, drawn: maps, panels, a page about a run."""
