"""Quality runs of searches for the place of attention."""
