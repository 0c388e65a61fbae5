"""Quality runs of the small pretrained models."""
