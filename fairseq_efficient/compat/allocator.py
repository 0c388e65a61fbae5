"""How the C library hands out memory on Linux: to a process that frees and asks for the same blocks in every step."""

import ctypes
import os
import platform

# mallopt's parameters, of glibc's malloc.h
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
KEPT = 2**30  # bytes of freed memory at the end of the heap that are not given back
MAPPED = 32 * 2**20  # a block from this size is always given back: the most that glibc itself would go to
# what a user sets who knows better
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """glibc gives freed activations back to the system and faults them in, page by page, in the next step.

    How much it keeps depends on the largest block it has seen, so that a net's time depends on what ran before. With
    fixed limits a step of small tensors (decoding, evaluation at batch 1) has no page faults; the peak of a training
    grows by 1 to 6 %, no more because large blocks are given back as before. Does nothing without glibc, and where one
    of ``VARIABLES`` is set.

    Returns:
        Whether the limits were set.
    """
    if platform.libc_ver()[0] != "glibc" or any(map(os.environ.get, VARIABLES)):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, KEPT) and mallopt(_MMAP_THRESHOLD, MAPPED))
