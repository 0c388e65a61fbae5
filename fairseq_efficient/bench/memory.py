"""Peak memory of one piece of work, measured in a process of its own."""

import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fairseq_efficient.bench.timing import Sample, time_call

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """``mb`` (2**20 bytes) at the highest point, and that one call's time; ``failed`` says why there is neither."""

    mb: float | None = None
    sample: Sample | None = None
    failed: str = ""


def resident_mb(key: str = "VmRSS") -> float:
    """Resident memory of this process: VmRSS now, VmHWM at its highest.

    Not ``ru_maxrss`` where there is a choice: on Linux a new process inherits that peak from the one that started it.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def peak_memory(prepare: Callable[..., Callable[[], Any]], *args: Any, device: str, threads: int) -> Peak:
    """Run ``prepare(*args)()`` in a fresh process: what it adds to the memory of an interpreter with all imports done.

    Its torch has computed before: libraries, threads and late imports take some 60 MB at the first work of any size.
    Counts weights, inputs and work; on CUDA what torch's allocator held at its highest. ``prepare`` must be importable.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "fairseq_efficient.bench.timing", *_preload(prepare)])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, prepare, args, device, threads), daemon=True)
    child.start()
    sender.close()
    try:
        peak: Peak = receiver.recv()
    except EOFError:
        child.join()
        reason = "out of memory" if child.exitcode == -signal.SIGKILL else f"exit status {child.exitcode}"
        peak = Peak(failed=reason)
    finally:
        if child.is_alive():
            child.join(5)
        child.kill()
        receiver.close()
    return peak


def _preload(prepare: Callable[..., Any]) -> list[str]:
    module = getattr(prepare, "__module__", "__main__")
    return [module]


def _child(sender: Connection, prepare: Callable[..., Callable[[], Any]], args: Any, device: str, threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)
    place = torch.device(device)
    try:
        _start_libraries(place)
        before = 0.0 if place.type == "cuda" else resident_mb()
        call = prepare(*args)
        sample = time_call(call, place)
        after = torch.cuda.max_memory_allocated(place) / 2**20 if place.type == "cuda" else resident_mb("VmHWM")
        sender.send(Peak(after - before, sample))
    except (MemoryError, RuntimeError) as err:  # torch.cuda.OutOfMemoryError is a RuntimeError
        sender.send(Peak(failed=" ".join(str(err).split())[:200]))


def _start_libraries(place: Any) -> None:
    """Forward and backward of a small layer: products, attention, norm, softmax and their gradients."""
    import torch
    from torch.nn import functional

    x = torch.randn(2, 128, 128, device=place, requires_grad=True)
    heads = functional.layer_norm(functional.linear(x, x[0]), (128,)).view(2, 4, 128, 32)
    seen = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    masked = functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=torch.zeros(128, 128, device=place))
    loss = functional.cross_entropy((seen + masked).flatten(0, 2), torch.zeros(1024, dtype=torch.long, device=place))
    loss.unsqueeze(0).backward(torch.ones(1, device=place))  # with a gradient that is given, torch imports sympy
