"""What hydra does anew for each of fairseq's commands is done once for each process, or not at all: half of a tiny
training.

Only in tests: importing this module remembers how hydra reads an override such as ``common.seed=1``, which depends on
nothing else. The server that tests fork their commands from imports it too, and reads fairseq's defaults in advance.
"""

import copy
import functools
import inspect
import sys
from types import SimpleNamespace
from typing import Any

import hydra._internal.utils
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser


def remember_overrides() -> None:
    """Patch hydra, once. Results are copied, because hydra writes into them."""
    stock = OverridesParser.parse_rule
    if hasattr(stock, "remembered"):
        return
    reader = OverridesParser.create()

    @functools.lru_cache(maxsize=10_000)
    def read(text: str, rule: str) -> Any:
        return stock(reader, text, rule)

    def parse_rule(self: Any, s: str, rule_name: str) -> Any:
        return copy.copy(read(s, rule_name))

    parse_rule.remembered = read  # type: ignore[attr-defined]
    OverridesParser.parse_rule = parse_rule  # type: ignore[method-assign]


def copy_no_sources() -> None:
    """hydra copies the places of its configurations, with all that they hold, to give the copy another list of them."""

    def __init__(self: Any, delegate: Any) -> None:
        self.delegate, self.cache = copy.copy(delegate), {}

    CachingConfigRepository.__init__ = __init__  # type: ignore[method-assign]


def read_no_code() -> None:
    """hydra asks who calls it by a stack with the lines of all files in it."""

    def stack() -> list[inspect.FrameInfo]:
        found, frame = [], sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
            frame = frame.f_back  # type: ignore[assignment]
        return found

    hydra._internal.utils.inspect = SimpleNamespace(**{**vars(inspect), "stack": stack})  # type: ignore[assignment]


def read_defaults() -> None:
    """The overrides that all trainings, and all evaluations, have in common."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    training, evaluation = options.get_training_parser(), options.get_generation_parser()
    for parser, args in ((training, ["data", "--arch", "transformer_tiny"]), (evaluation, ["data"])):
        convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, args))


remember_overrides()
copy_no_sources()
read_no_code()
