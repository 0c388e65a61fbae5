"""Freed memory stays with the process, unless the user says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from fairseq_efficient.compat.allocator import VARIABLES, keep_freed_memory

STEPS = """
import ctypes, resource, sys
from fairseq_efficient.compat.allocator import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def step(blocks=20, size=2_000_000):
    kept = [libc.malloc(size) for _ in range(blocks)]
    for block in kept:
        ctypes.memset(block, 1, size)
    for block in kept:
        libc.free(block)

if "limits" in sys.argv:
    assert keep_freed_memory()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")


def page_faults(*arguments: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | {
        "OMP_NUM_THREADS": "1"
    }
    made = subprocess.run([sys.executable, "-c", STEPS, *arguments], env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return int(made.stdout)


def test_steps_after_the_first_fault_no_page_in() -> None:
    assert page_faults("limits") < 100 < page_faults()  # of 4 kB: a step takes 40 MB


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()
