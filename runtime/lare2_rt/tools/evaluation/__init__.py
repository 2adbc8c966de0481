"""How good a detector is: scores of labelled images, metrics with intervals, corruptions, reports. Without torch."""
