"""Every system in one --user-dir."""

import adaptive_span  # noqa: F401
import deep_pyramidion  # noqa: F401
import dynamic_pooling  # noqa: F401
import par_search  # noqa: F401
import skimming  # noqa: F401
