"""What reading checkpoints of original implementations has in common; each system's ``original.py`` has the rest."""

from torch import Tensor, nn

from fairseq_efficient.errors import UserError

_BUFFERS = ("_float_tensor", "version")  # fairseq's modules expect them; the originals have none


class BareTypes:
    """A dictionary as an original had it: so many types, none of them special (the pad is an id that never occurs).

    Args:
        space: the id of the space, where the original was told.
    """

    def __init__(self, types: int, space: int | None = None):
        self.types, self.space = types, space

    def __len__(self) -> int:
        return self.types

    def pad(self) -> int:
        return self.types

    eos = unk = pad

    def index(self, symbol: str) -> int:
        return self.unk() if self.space is None else self.space


def bare_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the name of the wrapper of parallel training."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load renamed weights; UserError if some do not fit, are missing or are left over."""
    missing: list[str] = []
    unexpected: list[str] = []
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as err:
        raise UserError("weights do not fit the model: " + " ".join(str(err).split())[:300]) from None
    lacking = [f"no {name}" for name in missing if not name.endswith(_BUFFERS)]
    wrong = lacking + [f"{name} is not of it" for name in unexpected]
    if wrong:
        raise UserError(f"weights do not fit the model: {', '.join(wrong[:3])}")
