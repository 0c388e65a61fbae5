"""Trained models behind one call: ``Model.from_pretrained(folder)`` and what comes out of it; folders to give away."""
