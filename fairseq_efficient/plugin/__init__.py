"""Registers what the systems share: task ``long_summarization``, scorer ``rouge``, BPEs ``dp_characters, dp_bytes``."""

from fairseq_efficient import compat

compat.apply()

from fairseq_efficient.plugin import characters, long_summarization, rouge  # noqa: E402

__all__ = ["characters", "long_summarization", "rouge"]
