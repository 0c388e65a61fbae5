"""Adaptive attention spans for fairseq: use this folder as --user-dir."""

from fairseq_efficient import compat

compat.apply()

import adaptive_span.criterion  # noqa: E402
import adaptive_span.model  # noqa: E402
import adaptive_span.optimizer  # noqa: E402, F401
import fairseq_efficient.plugin  # noqa: E402, F401
