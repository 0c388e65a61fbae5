"""Quality runs of learned segments."""
