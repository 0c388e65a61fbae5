"""PAR search for fairseq: use this folder as --user-dir."""

from fairseq_efficient import compat

compat.apply()

import fairseq_efficient.plugin  # noqa: E402, F401
import par_search.criterion  # noqa: E402
import par_search.model  # noqa: E402
import par_search.optimizer  # noqa: E402
import par_search.task  # noqa: E402, F401
