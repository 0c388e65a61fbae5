"""Documents and summaries: corpora, formats, preparation, floors, ROUGE."""
