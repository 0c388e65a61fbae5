"""Pyramidion for fairseq: use this folder as --user-dir."""

from fairseq_efficient import compat

compat.apply()

import deep_pyramidion.model  # noqa: E402, F401
import fairseq_efficient.plugin  # noqa: E402, F401
