"""Imported by the server that tests fork their commands from (``tests/util.py``), after fairseq's tools: what each of
its processes would import or compute anew. Our own packages are not imported here, so that a command does it."""

import gc

import nltk.stem.porter  # noqa: F401
import sentencepiece  # noqa: F401
import tokenizers  # noqa: F401
import torch._dynamo  # noqa: F401  (by every optimizer)

from tests.quick import read_defaults

read_defaults()
gc.collect()
gc.freeze()  # what is here is neither looked at nor copied by the collections of a process
