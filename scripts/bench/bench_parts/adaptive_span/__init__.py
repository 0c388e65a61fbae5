"""The bench of attention spans."""
