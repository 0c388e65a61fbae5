"""The bench of classifiers that skip tokens."""
