"""Quality runs of language models of any system."""
