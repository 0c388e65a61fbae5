"""What stock fairseq does not say of checkpoints and their folder: patched in by :mod:`fairseq_efficient.compat`, which
calls this."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from fairseq_efficient.checkpoint_sizes import Bounded
from fairseq_efficient.errors import UserError

Patch = Callable[[Any, str, Callable[[Any], Any]], None]


def name_the_save_dir(patch: Patch) -> None:
    """Stock ends in a traceback when ``--save-dir`` is no folder, or one without permission to write."""
    from fairseq import checkpoint_utils

    def make(stock: Any) -> Any:
        def verify_checkpoint_directory(save_dir: str) -> None:
            try:
                stock(save_dir)
            except OSError as err:
                raise UserError(f"--save-dir {save_dir}: {err.strerror}") from None

        return verify_checkpoint_directory

    patch(checkpoint_utils, "verify_checkpoint_directory", make)


def name_what_does_not_fit(patch: Patch) -> None:
    """Stock says "please ensure that the architectures match": say which key, with both shapes. It also builds a model
    of whatever size a checkpoint names.

    Stock starts anew, in silence, when ``--restore-file`` does not exist: say so, unless it is a ``checkpoint_last``,
    which the first start of a restarted job does not find.
    """
    from fairseq import checkpoint_utils
    from fairseq.file_io import PathManager
    from fairseq.trainer import Trainer

    def make_trainer_load(stock: Any) -> Any:
        def load_checkpoint(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
            if not os.path.basename(filename).startswith("checkpoint_last") and not PathManager.isfile(filename):
                raise UserError(f"checkpoint {filename} does not exist (--restore-file, --finetune-from-model)")
            with _explained(filename):
                return stock(self, filename, *args, **kwargs)

        return load_checkpoint

    def make_ensemble_load(stock: Any) -> Any:
        def load_model_ensemble_and_task(filenames: Any, *args: Any, **kwargs: Any) -> Any:
            with _explained(", ".join(filenames)), Bounded():
                return stock(filenames, *args, **kwargs)

        return load_model_ensemble_and_task

    patch(Trainer, "load_checkpoint", make_trainer_load)
    patch(checkpoint_utils, "load_model_ensemble_and_task", make_ensemble_load)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is put into a model into one line that names the file."""
    try:
        yield
    except Exception as err:
        inner = err.__context__ if type(err) is Exception else err  # the trainer wraps all in a bare Exception
        text = str(inner)
        if isinstance(inner, UserError):
            raise inner from None
        if isinstance(inner, RuntimeError) and "Error(s) in loading state_dict" in text:
            raise UserError(f"checkpoint {path} does not fit this model: {describe_mismatch(text)}") from None
        if isinstance(inner, AssertionError) and "--reset-optimizer" in text:
            raise UserError(f"checkpoint {path}: {text}") from None
        if isinstance(inner, OSError) and text.startswith("Model file not found: "):
            raise UserError(f"checkpoint {text.partition(': ')[2]} does not exist (--path)") from None
        raise


def describe_mismatch(report: str) -> str:
    """The first wrong key in torch's report of ``load_state_dict``, with both shapes, and how many keys differ."""
    sizes = re.findall(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)", report)
    keys = {}
    for kind in ("Missing", "Unexpected"):
        found = re.search(rf"{kind} key\(s\) in state_dict: (.*)", report)
        keys[kind] = re.findall(r'"([^"]+)"', found[1]) if found else []
    if sizes:
        what = f"{sizes[0][0]} has shape {sizes[0][1]} in the file and {sizes[0][2]} in the model"
    elif keys["Missing"]:
        what = f"the file has no {keys['Missing'][0]}"
    elif keys["Unexpected"]:
        what = f"the model has no {keys['Unexpected'][0]}"
    else:
        return " ".join(report.split())[:300]
    count = len(sizes) + len(keys["Missing"]) + len(keys["Unexpected"])
    differ = f" ({count} keys differ)" if count > 1 else ""
    return f"{what}{differ}; give the --arch, sizes and dictionaries it was trained with"
