"""The bench of searches for the place of attention."""
