"""From a file to the uint8 arrays that the graphs take."""
