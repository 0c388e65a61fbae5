"""Quality runs of classifiers that skip tokens."""
