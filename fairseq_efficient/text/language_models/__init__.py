"""Streams of tokens: corpora, cleaning, reading, binarising, floors."""
