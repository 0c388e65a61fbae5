"""The bench of learned segments."""
