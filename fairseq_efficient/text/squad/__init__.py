"""Questions and the paragraphs that answer them."""
