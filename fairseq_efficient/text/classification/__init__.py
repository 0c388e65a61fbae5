"""Labelled texts: corpora, reading, preparation, floors."""
