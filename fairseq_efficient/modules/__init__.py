"""Parts of models, built from plain values."""
