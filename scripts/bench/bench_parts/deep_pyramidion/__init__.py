"""The bench of trainable pooling."""
