"""From corpora to binarised data, and back to scores."""
