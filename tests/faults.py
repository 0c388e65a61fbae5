"""What can go wrong around a command, for ``Command(before="tests.faults:...")``: each function changes its process."""

import ctypes
import resource

SMALL = 50_000  # bytes; less than any checkpoint of the tests, more than their logs


def small_files() -> None:
    """No file may grow beyond :data:`SMALL`, as on a full disk (the error is EFBIG)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))


def no_privileges() -> None:
    """Root without capabilities: the permissions of files and folders count again."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0


def no_noise() -> None:
    """Gumbel noise and uniform draws are their medians, so that nothing depends on how often they are drawn."""
    import torch

    from fairseq_efficient.ops import relaxed_onehot

    relaxed_onehot.gumbel_like = torch.zeros_like
    torch.rand_like = lambda x, **_: torch.full_like(x, 0.5)
