"""Two processes on the CPU (gloo), in the form that works there (see deep_pyramidion/README.md)."""

from collections.abc import Sequence

from tests.util import Command, free_port


def start_ranks(args: Sequence[str], before: str = "") -> list[Command]:
    """Two trainings that have just been started; ``before`` as in :class:`tests.util.Command`."""
    form = [
        "--distributed-world-size", "2", "--distributed-init-method", f"tcp://127.0.0.1:{free_port()}",
        "--distributed-backend", "gloo", "--distributed-no-spawn", "--ddp-backend", "legacy_ddp",
    ]  # fmt: skip
    return [Command("train", [*args, *form, "--distributed-rank", str(rank)], before=before) for rank in (0, 1)]


def two_ranks(args: Sequence[str], before: str = "") -> str:
    """Rank 0's output; both ranks must succeed."""
    output, _ = [rank.wait() for rank in start_ranks(args, before)]
    return output
