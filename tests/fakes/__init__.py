"""Stand-ins for libraries and devices."""
