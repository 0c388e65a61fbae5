"""Dynamic token pooling for fairseq: use this folder as --user-dir."""

from fairseq_efficient import compat

compat.apply()

import dynamic_pooling.criterion  # noqa: E402
import dynamic_pooling.model  # noqa: E402
import dynamic_pooling.task  # noqa: E402, F401
import fairseq_efficient.plugin  # noqa: E402, F401
