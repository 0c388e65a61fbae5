"""Registers with fairseq what the systems share: task ``long_summarization``, scorer ``rouge``."""

from fairseq_efficient import compat

compat.apply()

from fairseq_efficient.plugin import long_summarization, rouge  # noqa: E402

__all__ = ["long_summarization", "rouge"]
