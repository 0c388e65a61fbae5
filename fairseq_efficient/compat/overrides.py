"""``--model-overrides`` of an option that a checkpoint does not have: stock passes over it in silence."""

import argparse
import ast
import difflib
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fairseq_efficient.compat.patching import patch
from fairseq_efficient.errors import UserError

_typed: set[str] = set()  # the names in the flag of the command that runs


def remember_overrides(args: argparse.Namespace) -> None:
    """Which options a parsed command line overrides; the dictionary was checked before."""
    _typed.clear()
    given = getattr(args, "model_overrides", None)
    _typed.update(ast.literal_eval(given.strip()) if given else ())


def refuse_unknown_overrides() -> None:
    """UserError for a typed option that no part of a checkpoint's configuration has.

    What a program passes stays as it is: fairseq's hub gives options of BPE and tokenizers the same way.
    """
    from fairseq import checkpoint_utils

    def make(stock: Any) -> Any:
        def overwrite_args_by_name(cfg: Any, overrides: Any) -> Any:
            known = set(_names(cfg))
            unknown = sorted(str(name) for name in _typed & set(overrides) if name not in known)
            if unknown and known:
                close = difflib.get_close_matches(unknown[0], sorted(known), 1)
                hint = f"; perhaps {close[0]!r} is meant" if close else ""
                raise UserError(f"--model-overrides: the checkpoint has no option {unknown[0]!r}{hint}")
            return stock(cfg, overrides)

        return overwrite_args_by_name

    patch(checkpoint_utils, "overwrite_args_by_name", make)


def _names(cfg: DictConfig) -> Iterator[str]:
    """All options of a checkpoint's configuration; none if a part of it takes any (an older fairseq's namespace)."""
    parts = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(parts, dict)
    if any(isinstance(part, argparse.Namespace) for part in parts.values()):
        return
    for name, part in parts.items():
        yield str(name)
        if isinstance(part, dict):
            yield from map(str, part)
