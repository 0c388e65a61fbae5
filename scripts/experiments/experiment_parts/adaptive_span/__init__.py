"""Quality runs of attention spans."""
