"""R9, R10: numbers that are none stop a training at once; selections of all or nothing are no special case."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer
from torch import Tensor

from fairseq_efficient import checkpoints
from tests.adaptive_span import helpers as adaptive_span
from tests.deep_pyramidion import helpers as pyramidion
from tests.dynamic_pooling import helpers as hourglass
from tests.par_search import helpers as par_search
from tests.reliability.figures import Record
from tests.reliability.systems import MAIN_SYSTEMS
from tests.skimming import helpers as skimming
from tests.stream_models import tokens as tokens_of
from tests.util import System, assert_close, error_line, run_here, train_args

# --- R9: NaN ----------------------------------------------------------------------------------------------------------

# what is drawn from, or decides: where it is computed, which of its numbers becomes NaN, the module that is named
SOURCES: dict[str, tuple[str, str, tuple[int, ...], str]] = {
    "pyramidion_tiny": ("deep_pyramidion.pooler", "TopkPooler.scores", (0, 1), "encoder.pooler"),
    "dynamic_pooling_lm_gumbel_fast": (
        "dynamic_pooling.boundaries", "BoundaryPredictor.forward", (0, 1), "decoder.boundary_rule.predictor",
    ),
    "skim_roberta_tiny": (
        "skimming.predictor", "SkimPredictor.forward", (1, 0, 1), "encoder.sentence_encoder.skim_predictors.0",
    ),
    "par_supernet": ("par_search.supernet", "SupernetDecoder.mixing_weights", (0, 0), "decoder"),
    "sequential_lm": ("adaptive_span.spans", "Spans.forward", (0,), "decoder.layers.0"),
}  # fmt: skip
UPDATES = 3  # before the update in which it happens


@pytest.mark.parametrize("system", MAIN_SYSTEMS, ids=str)
def test_r9_nan_stops_training_within_one_update(
    system: System, datasets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Record
):
    """The layer is named, one line says what happened, and the last checkpoint is of before."""
    module, name, place, layer = SOURCES[system.arch]
    kind, method = name.split(".")
    owner = getattr(importlib.import_module(module), kind)
    stock, step, now = getattr(owner, method), Trainer.train_step, [0]

    def train_step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        now[0] = self.get_num_updates()
        return step(self, *args, **kwargs)

    def poisoned(self: Any, *args: Any) -> Tensor:
        out = stock(self, *args)
        if self.training and now[0] == UPDATES:
            wrong = torch.zeros_like(out, dtype=torch.bool)
            wrong[place] = True
            out = torch.where(wrong, out * float("nan"), out)
        return out

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(owner, method, poisoned)
    args = train_args(datasets[system.data], tmp_path, system, "--save-interval-updates", "2")
    status, output = run_here("train", args)
    assert status == 1 and "gradients are Nan/Inf" in error_line(output), output
    assert now == [UPDATES] and f"NaN detected in output of {layer}" in output, output
    for file, updates in (("checkpoint_last.pt", 2), ("crash.pt", UPDATES)):
        state = checkpoints.read_checkpoint(str(tmp_path / file))
        assert state["optimizer_history"][-1]["num_updates"] == updates
        assert all(bool(weight.isfinite().all()) for weight in state["model"].values())
    figure("R9", "NaN that stopped a training in its update", 1)


# --- R10: all, nothing, one, none -------------------------------------------------------------------------------------

Made = tuple[Any, Tensor]  # a model in training, and a loss of it


def summary(sources: list[Tensor], **flags: Any) -> Made:
    """The last words of each source as its summary, and one row more of pads."""
    model = pyramidion.build(**flags).train()
    empty = torch.full((3,), pyramidion.PAD)
    rows = pyramidion.pad([*sources, empty])
    targets = pyramidion.pad([*(one[-4:] for one in sources), empty])
    logits = model(rows, None, targets)[0]
    return model, cross_entropy(logits, targets, pyramidion.PAD) + logits.square().sum() * 1e-3


def cross_entropy(logits: Tensor, targets: Tensor, pad: int) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=pad,
                                             reduction="sum")  # fmt: skip


def stream(model: Any, tokens: Tensor, **more: Any) -> Made:
    """A language model of rows, and one more of pads."""
    pad = model.decoder.pad
    tokens = torch.cat([tokens, torch.full((1, tokens.size(1)), pad)])
    logits, extra = model.train().decoder(tokens, **more)
    if model.decoder.__class__.__name__ != "HourglassDecoder":
        memory = extra["memory"]
        logits, extra = model.decoder(tokens, memory=memory)
    loss = cross_entropy(logits[:, :-1], tokens[:, 1:], pad) + logits.float().square().sum() * 1e-3
    return model, loss + sum(extra.get("aux", {}).values())


def segments(kind: str, tokens: Tensor, bias: float = 0.0, **flags: Any) -> Made:
    model = hourglass.model(kind, **{key: flags.pop(key) for key in list(flags) if key == "fixed_sf"})
    if bias:
        with torch.no_grad():
            model.decoder.boundary_rule.predictor.fc2.bias.fill_(bias)
    return stream(model, tokens, **flags)


def sentences(lengths: list[int], bias: float = 0.0, **flags: Any) -> Made:
    model = skimming.build(skim=False, **flags).train()
    with torch.no_grad():
        for predictor in model.encoder.sentence_encoder.skim_predictors.values():
            predictor[4].bias.copy_(torch.tensor([-bias, bias]))
    tokens = skimming.pad(skimming.sentences(lengths), max([3, *lengths]))
    tokens = torch.cat([tokens, torch.full((1, tokens.size(1)), skimming.PAD)])
    logits, extra = model(tokens, classification_head_name=skimming.HEAD)
    return model, cross_entropy(logits[:-1, None], torch.zeros(len(lengths), 1, dtype=torch.long), -1) + (
        logits.square().sum() * 1e-3 + extra["aux"]["skim"]
    )


def searched(value: float, place: int) -> Made:
    model = par_search.supernet(3, straight_through=place == 1)
    with torch.no_grad():
        model.decoder.alpha[:, place] = value
    return stream(model, tokens_of(2, 9))


def spanned(ratio: float, count: int = 20, **flags: Any) -> Made:
    model = adaptive_span.sequential_lm(**{**adaptive_span.SPANS, **flags})
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.self_attn.spans.ratio.fill_(ratio)
    return stream(model, tokens_of(2, count))


DOCUMENTS = pyramidion.documents([40, 64, 7])
NO_SPACES = torch.cat([hourglass.text(30, 30)[:, :1], torch.full((2, 29), hourglass.WORDS.index("a"))], 1)
DEGENERATE: dict[str, Callable[[], Made]] = {
    "pyramidion: all tokens are kept": lambda: summary(DOCUMENTS, enc_layers_and_token_width="0:64,2:64"),
    "pyramidion: one token is kept": lambda: summary(DOCUMENTS, enc_layers_and_token_width="0:4,2:1"),
    "pyramidion: sources of one token": lambda: summary(pyramidion.documents([1, 1])),
    "pyramidion: pads alone": lambda: summary([]),
    "hourglass: all tokens end a segment": lambda: segments("fixed", hourglass.text(30, 9), fixed_sf=1),
    "hourglass: none does": lambda: segments("fixed", hourglass.text(30, 9), fixed_sf=10**6),
    "hourglass: no spaces": lambda: segments("whitespaces", NO_SPACES),
    "hourglass: always drawn": lambda: segments("gumbel", hourglass.text(30, 9), 1e4),
    "hourglass: never drawn": lambda: segments("gumbel", hourglass.text(30, 9), -1e4),
    "hourglass: one token": lambda: segments("entropy", hourglass.text(1, 1)),
    "hourglass: pads alone": lambda: segments("gumbel", torch.full((2, 5), hourglass.WORDS.pad())),
    "skimming: all tokens are skipped": lambda: sentences([9, 30], -1e4),
    "skimming: all are kept": lambda: sentences([9, 30], 1e4),
    "skimming: sentences of one token": lambda: sentences([1, 1]),
    "skimming: all are padding": lambda: sentences([]),
    "par_search: all blocks are identity": lambda: stream(par_search.par_lm("iii"), tokens_of(2, 9)),
    "par_search: one token": lambda: stream(par_search.par_lm("af", mem_len=0), tokens_of(2, 1)),
    "par_search: pads alone": lambda: stream(par_search.par_lm("af"), torch.full((2, 5), 1)),
    "par_search: only attention": lambda: searched(1e4, 0),
    "par_search: only feed-forward": lambda: searched(1e4, 1),
    "par_search: only identity": lambda: searched(1e4, 2),
    "par_search: never identity": lambda: searched(-1e4, 2),
    "adaptive_span: no span": lambda: spanned(0.0),
    "adaptive_span: the longest": lambda: spanned(1.0),
    "adaptive_span: one place": lambda: spanned(1.0, attn_span=1, adapt_span_ramp=1),
    "adaptive_span: one token": lambda: spanned(0.5, 1),
    "adaptive_span: one token, persistent": lambda: spanned(0.0, 1, pers_mem_size=2),
    "adaptive_span: pads alone": lambda: stream(
        adaptive_span.sequential_lm(**adaptive_span.SPANS), torch.full((2, 5), 1)
    ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_r10_losses_and_gradients_are_finite(name: str, poisoned_memory: None, figure: Record):
    """In training, beside a row of pads, with memory that nobody has written holding NaN."""
    model, loss = DEGENERATE[name]()
    assert loss.requires_grad and bool(loss.isfinite())
    loss.backward()
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert found and not [name for name, grad in found.items() if not bool(grad.isfinite().all())]
    figure("R10", "degenerate selections with finite gradients", 1)


@torch.no_grad()
def test_r10_keeping_all_is_the_plain_model(figure: Record):
    """Pools as wide as their input, thresholds below all logits, spans of all there is, one kind in each block."""
    rows, targets = pyramidion.pad(DOCUMENTS), pyramidion.pad(pyramidion.prefixes(pyramidion.documents([5, 3, 4], 1)))
    pooled = pyramidion.build(enc_layers_and_token_width="0:64,2:64", use_sparse_attn="pooler_no_block")
    plain = pyramidion.build(**pyramidion.NO_POOLING)
    plain.load_state_dict({key: value for key, value in pooled.state_dict().items() if ".pooler." not in key})
    pairs = [(pooled(rows, None, targets)[0], plain(rows, None, targets)[0])]

    tokens = skimming.pad(skimming.sentences([12, 30, 5]))
    keeps, none = skimming.build(skim_threshold=-1e9), skimming.build(skim_layers="none")
    none.load_state_dict({key: value for key, value in keeps.state_dict().items() if ".skim_predictors." not in key})
    expected = skimming.features(none, tokens, "masked")[0]
    real = tokens.ne(skimming.PAD)
    pairs += [(skimming.features(keeps, tokens, mode)[0][real], expected[real]) for mode in ("masked", "packed")]

    spans, fixed = adaptive_span.sequential_lm(**adaptive_span.SPANS), adaptive_span.sequential_lm()
    for layer in spans.decoder.layers:
        layer.self_attn.spans.ratio.fill_(1.0)
    fixed.load_state_dict({key: value for key, value in spans.state_dict().items() if ".spans." not in key})
    tokens = tokens_of(2, 30)
    pairs.append((spans(tokens)[0], fixed(tokens)[0]))

    for place, kind in enumerate("afi"):
        mixed = par_search.supernet(3, supernet_eval="mixture")
        mixed.decoder.alpha[:, place] = 1e4
        tokens = tokens_of(2, 9)
        pairs.append((mixed.decoder(tokens)[0], mixed.decoder(tokens, layout=kind * 3)[0]))
    for one, other in pairs:
        assert_close(one, other, 1e-6, 1e-6)
    figure("R10", "selections of all, equal to the plain model", len(pairs))
