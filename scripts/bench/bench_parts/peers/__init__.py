"""The bench of models that others keep."""
