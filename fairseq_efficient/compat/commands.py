"""Where fairseq's commands are made to look for mistakes early, and to show them as one line."""

import itertools
import sys
from collections.abc import Sequence
from typing import Any

from fairseq_efficient.compat import mistakes, overrides
from fairseq_efficient.compat.patching import MARK, patch
from fairseq_efficient.errors import UserError

_HELP = frozenset(("-h", "--help"))


def present_errors() -> None:
    """Mistakes of the user end in a traceback and status 1: show one line and exit with 2.

    An ``excepthook``, because generate does not go through ``distributed.utils.call_main``, and a plugin can fail to
    import before it. Under ``fairseq-hydra-train`` hydra catches all, so there it is the getter of hydra's job
    result.
    """
    from hydra.core.utils import JobReturn, JobStatus

    mistakes.install_excepthook()
    stock: Any = JobReturn.return_value
    if getattr(stock.fget, MARK, False):
        return

    def return_value(self: Any) -> Any:
        if self.status == JobStatus.FAILED:
            mistakes.exit_if_user_error(self._return_value)
        return stock.fget(self)

    setattr(return_value, MARK, True)
    JobReturn.return_value = property(return_value, stock.fset)  # type: ignore[method-assign,assignment]


def check_commands() -> None:
    """Stock ends deep inside (``--fp16 --cpu``), trains twice into one folder (torchrun on the CPU), "is done" after no
    update (``--lr -1``), or raises a RuntimeError without words (no ``--arch``): look at the values once they are
    parsed, and, for hydra and programs, again before anything is built and in the trainer. ``--help`` shows the flags
    of the model, task, criterion and optimizer that stand beside it.
    """
    from fairseq import options, tasks
    from fairseq.trainer import Trainer

    def make_parse(stock: Any) -> Any:
        def parse_args_and_arch(parser: Any, input_args: Any = None, *args: Any, **kwargs: Any) -> Any:
            words = sys.argv[1:] if input_args is None else input_args
            if _HELP & set(words):
                input_args, kwargs["modify_parser"] = _help_at_last(parser, words, kwargs.get("modify_parser"))
            try:
                parsed = stock(parser, input_args, *args, **kwargs)
            except RuntimeError as err:
                if err.args:
                    raise
                if _HELP & set(words):
                    _show_help(parser)
                raise UserError("--arch is missing: say which model to train (--help lists them)") from None
            values = parsed[0] if isinstance(parsed, tuple) else parsed
            mistakes.check_arguments(values)
            overrides.remember_overrides(values)
            return parsed

        return parse_args_and_arch

    def make_trainer(stock: Any) -> Any:
        def __init__(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
            mistakes.check_config(cfg)
            stock(self, cfg, *args, **kwargs)

        return __init__

    def make_defaults(stock: Any) -> Any:
        def add_defaults(cfg: Any) -> None:
            mistakes.check_config(cfg)
            stock(cfg)

        return add_defaults

    def make_setup(stock: Any) -> Any:
        def setup_task(cfg: Any, **kwargs: Any) -> Any:
            if not kwargs.get("from_checkpoint"):
                mistakes.check_data(getattr(cfg, "data", None))
            return stock(cfg, **kwargs)

        return setup_task

    patch(options, "parse_args_and_arch", make_parse)
    patch(tasks, "setup_task", make_setup)
    patch(Trainer, "__init__", make_trainer)
    if "fairseq_cli.train" in sys.modules:  # called between the import of a --user-dir and the building of the model
        patch(sys.modules["fairseq_cli.train"], "add_defaults", make_defaults)


def _help_at_last(parser: Any, words: Sequence[str], modify: Any) -> tuple[list[str], Any]:
    """Arguments without ``--help``, and a ``modify_parser`` that shows it. Stock calls that one before it parses what
    all commands know, and again when the flags of the chosen parts are there."""
    calls = itertools.count(1)

    def modify_parser(given: Any) -> None:
        if modify is not None:
            modify(given)
        if next(calls) == 2:
            _show_help(parser)

    return [word for word in words if word not in _HELP], modify_parser


def _show_help(parser: Any) -> None:
    parser.print_help()
    sys.exit(0)
