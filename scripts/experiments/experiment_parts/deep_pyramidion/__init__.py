"""Quality runs of trainable pooling."""
