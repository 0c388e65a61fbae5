"""Which checkpoints are loaded: those of our systems and of a few stock models.

``weights_only`` is not enough: stock fairseq builds whatever architecture a checkpoint names, and several of them
(fconv, lightconv, wav2vec, hubert) pass strings of the stored configuration to ``eval``.
"""

import argparse
import ast
import contextlib
import enum
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairseq_efficient import checkpoint_sizes
from fairseq_efficient.checkpoint_pickles import MOST_OPTIONS, leaves
from fairseq_efficient.errors import UserError
from fairseq_efficient.systems import PACKAGES, SYSTEMS

STOCK_MODELS = ("transformer", "transformer_lm", "bart", "roberta")
STOCK_TASKS = (
    "translation", "translation_from_pretrained_bart", "language_modeling", "denoising", "multilingual_denoising",
    "masked_lm", "multilingual_masked_lm", "sentence_prediction",
)  # fmt: skip
STOCK_CRITERIONS = (
    "cross_entropy", "label_smoothed_cross_entropy", "adaptive_loss", "masked_lm", "sentence_prediction",
)  # fmt: skip

# options that stock code passes to eval() when they are strings; a test compares the list with fairseq's source
EVALUATED = frozenset({
    "adafactor_eps", "adam_betas", "adamax_betas", "adaptive_input_cutoff", "adaptive_softmax_cutoff",
    "character_filters", "conv_aggregator_layers", "conv_feature_layers", "decoder_attention", "decoder_layers",
    "downsample", "encoder_attention", "encoder_layers", "gated_attention", "lamb_betas", "left_pad_source",
    "left_pad_target", "pipeline_balance", "pipeline_decoder_balance", "pipeline_decoder_devices", "pipeline_devices",
    "pipeline_encoder_balance", "pipeline_encoder_devices", "pretrained", "project_input", "self_attention",
    "wer_args", "xformers_att_config",
})  # fmt: skip

_PLAIN = (bool, int, float, str, enum.Enum)
_trusted: set[str] = set()


def trust(package: str) -> None:
    """Let checkpoints name what the top-level ``package`` registers; for the ``__init__`` of plugins built on ours."""
    _trusted.add(package.partition(".")[0])


def check_checkpoint(state: dict[str, Any], path: str) -> None:
    """Refuse a foreign training state before anything is built from it, and say how much that may be.

    Raises:
        UserError: no configuration; an architecture, task or criterion that is neither ours nor on the lists above; a
            plugin that is not loaded; text where stock code would evaluate it.
    """
    sources = [state[key] for key in ("cfg", "args") if state.get(key) is not None]
    if not sources:
        raise UserError(f"checkpoint {path} refused: it stores no configuration (neither cfg nor args)")
    for source in sources:
        for kind, name in _names(source):
            _check_name(kind, name, source, path)
    check_options(sources, path)
    checkpoint_sizes.expect(state, path)


def check_bookkeeping(state: dict[str, Any], path: str) -> None:
    """What stock reads of every training state, without looking whether it is there."""
    if not isinstance(state.get("model"), dict):
        raise UserError(f"checkpoint {path} refused: it holds no model weights")
    history = state.get("optimizer_history", [{}] if "best_loss" in state else None)
    if not isinstance(history, list) or not history or not isinstance(history[-1], dict):
        raise UserError(f"checkpoint {path} refused: it is no training state of fairseq (no optimizer_history)")


def check_options(value: Any, path: str) -> None:
    """Refuse options that fairseq would run as code or put together anew, what is no plain value, and values that are
    nested without end.

    Raises:
        UserError: as said.
    """
    try:
        for key, one in leaves(value, MOST_OPTIONS, named=True):
            if not isinstance(one, _PLAIN) and one is not None:
                raise UserError(f"its {key} is no plain value but {type(one).__name__}")
            if isinstance(one, str):
                _check_text(key, one)
    except UserError as err:
        raise UserError(f"checkpoint {path} refused: {err}") from None


def _check_text(key: str, text: str) -> None:
    if key in EVALUATED and not is_literal(text):
        raise UserError(f"fairseq would run its {key} as code: {text[:80]!r}")
    if "${" in text:  # OmegaConf would: a few lines can stand for a text without end
        raise UserError(f"its {key} refers to other options: {text[:80]!r}")


def without_embed_paths(state: dict[str, Any]) -> None:
    """Forget the files that embeddings were started from: the weights are here, and what is there now may be anything
    (``/dev/zero``)."""
    for source in (state.get("cfg"), state.get("args")):
        model = source if isinstance(source, argparse.Namespace) else (source or {}).get("model")
        values = vars(model) if isinstance(model, argparse.Namespace) else model
        if isinstance(values, dict):
            values.update({name: None for name in ("encoder_embed_path", "decoder_embed_path") if values.get(name)})


@contextlib.contextmanager
def building(options: Any, weights: Any, path: str) -> Iterator[None]:
    """Around a model that is built by the ``options`` of a file of other than fairseq's kind, from its ``weights``.

    Raises:
        UserError: the options hold code, or ask for a much larger model than the weights are.
    """
    check_options(options, path)
    with checkpoint_sizes.Bounded():
        checkpoint_sizes.expect({"cfg": options, "model": weights}, path)
        yield


def _get(holder: Any, key: str) -> Any:
    return holder.get(key) if isinstance(holder, dict) else getattr(holder, key, None)


def _names(source: Any) -> Iterator[tuple[str, Any]]:
    """(kind, name) of all that would be built: from a ``cfg`` dict of sections, or from old fairseq's flat ``args``."""
    for kind, section, key in (("architecture", "model", "arch"), ("task", "task", "task"), ("criterion",) * 3):
        if isinstance(source, argparse.Namespace):
            names = [getattr(source, key, "translation" if kind == "task" else None)]
        else:
            part = _get(source, section)
            names = [part] if isinstance(part, str) else [_get(part, "_name"), _get(part, key)]
        names = [name for name in names if name is not None]
        if not names and kind != "criterion":  # exported models need none
            names = [None]
        yield from ((kind, name) for name in names)


def _check_name(kind: str, name: Any, source: Any, path: str) -> None:
    registered, stock = _look_up(kind, name)
    if registered is not None and (stock or _is_ours(registered.__module__)):
        return
    user_dir = os.path.basename(str(_get(_get(source, "common"), "user_dir") or "").rstrip("/"))
    if registered is None and user_dir in (*SYSTEMS, "efficient_systems"):
        loaded = [one for one in SYSTEMS if one in sys.modules]  # fairseq takes one --user-dir
        wanted = "efficient_systems, which has all systems" if loaded else user_dir
        raise UserError(f"checkpoint {path} needs a plugin for its {kind} {name!r}: say --user-dir {wanted}")
    raise UserError(f"checkpoint {path} refused: its {kind} {name!r} is neither ours nor one of the stock ones we load")


def _look_up(kind: str, name: Any) -> tuple[Any, bool]:
    """(registered class or None, whether it is stock and on the list)."""
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    if not isinstance(name, str):
        return None, False
    if kind == "architecture":
        registered = ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name)
        allowed = ARCH_MODEL_NAME_REGISTRY.get(name, name) in STOCK_MODELS
    elif kind == "task":
        registered, allowed = TASK_REGISTRY.get(name), name in STOCK_TASKS
    else:
        registered, allowed = CRITERION_REGISTRY.get(name), name in STOCK_CRITERIONS
    return registered, allowed and registered is not None and registered.__module__.startswith("fairseq.")


def _is_ours(module: str) -> bool:
    """True for trusted packages and for ours, which stand beside this one (fairseq's example is an adaptive_span
    too).
    """
    top = module.partition(".")[0]
    if top in _trusted:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    named = top in PACKAGES
    return named and file is not None and Path(file).resolve().parents[1] == Path(__file__).resolve().parents[1]


def is_literal(text: str) -> bool:
    """Whether Python would read it as a value without running anything."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True
