"""Linear probes on codes, many at once."""
