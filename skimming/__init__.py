"""Transformers that skip tokens layer by layer, for fairseq: use this folder as --user-dir."""

from fairseq_efficient import compat

compat.apply()

import fairseq_efficient.plugin  # noqa: E402, F401
import skimming.criterion  # noqa: E402
import skimming.model  # noqa: E402
import skimming.squad_criterion  # noqa: E402
import skimming.squad_task  # noqa: E402, F401
