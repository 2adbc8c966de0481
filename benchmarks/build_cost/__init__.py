"""What building a bundle takes: time, memory, disk."""
