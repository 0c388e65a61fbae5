"""Registers what the systems share: tasks ``long_summarization``, ``segment_lm``; scorer ``rouge``; BPEs ``dp_*``,
``wordpiece``."""

from fairseq_efficient import compat

compat.apply()

from fairseq_efficient.plugin import characters, long_summarization, rouge, segment_lm, wordpiece  # noqa: E402

__all__ = ["characters", "long_summarization", "rouge", "segment_lm", "wordpiece"]
