"""monoeval."""
