"""What users would take instead, from Hugging Face ``transformers``, as pieces of work: the same sizes and inputs.

``roberta`` computes what ours does, with the same weights. ``led`` (Longformer's encoder and decoder) and ``gpt2`` are
other models of the same depth and widths, with drawn weights: only their time and memory can be compared.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench_parts.deep_pyramidion import models as pyramid
from bench_parts.dynamic_pooling import models as hourglass
from bench_parts.skimming import models as skim
from fairseq_efficient import huggingface_names as names
from fairseq_efficient.bench.parity import Check, difference
from fairseq_efficient.bench.session import Where
from fairseq_efficient.bench.work import token_loss, training_step
from fairseq_efficient.errors import UserError

ROBERTA, LED, GPT2 = "roberta", "led", "gpt2"
TOLERANCE = 1e-4  # of logits, in fp32
BOS, EOS = 0, 2


@dataclass(frozen=True)
class Setup(Where):
    """Sizes of the three comparisons, each as in the benchmark of its system, and where they run."""

    sentences: skim.Setup = field(default_factory=skim.Setup)
    summaries: pyramid.Setup = field(default_factory=lambda: pyramid.Setup(beam=4, tokens=64))
    characters: hourglass.Setup = field(default_factory=hourglass.Setup)


def library() -> Any:
    """``transformers``, quiet. UserError where it is not installed."""
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):  # fairseq installs one for CUDA, which transformers would trip over
        sys.modules["torchaudio"] = None  # type: ignore[assignment]
    try:
        found = importlib.import_module("transformers")
    except ImportError:
        raise UserError("transformers is not installed: pip install 'fairseq-efficient[peers]'") from None
    found.logging.set_verbosity_error()
    return found


# --- classification: a RoBERTa with our weights -----------------------------------------------------------------------


def roberta(n: int, setup: skim.Setup) -> Any:
    """``RobertaForSequenceClassification`` with the weights of the benchmark's stock model, in evaluation mode."""
    found, stock = library(), skim.build("stock", n, replace(setup, dtype="fp32"))
    config = found.RobertaConfig(
        vocab_size=setup.types, hidden_size=setup.dim, num_hidden_layers=setup.layers, intermediate_size=setup.ffn,
        num_attention_heads=setup.heads, max_position_embeddings=n + names.PADDING, type_vocab_size=1,
        layer_norm_eps=1e-5, num_labels=skim.CLASSES, pad_token_id=skim.PAD, attn_implementation="sdpa",
    )  # fmt: skip
    model = found.RobertaForSequenceClassification(config)
    weights = stock.state_dict()
    state = names.to_huggingface(weights, "roberta", setup.layers, torch.arange(setup.types))
    state = {f"roberta.{name}": weight for name, weight in state.items()}
    state.update(names.head_back(weights, "roberta", skim.HEAD))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any("position_ids" not in name for name in missing):
        raise RuntimeError(f"transformers names its weights in another way now: {[*missing, *unexpected][:3]}")
    return setup.placed(model).eval()


def classify(kind: str, n: int, setup: skim.Setup) -> Callable[[], Tensor]:
    """Logits of a padded batch of sentences, by inference."""
    if kind != ROBERTA:
        return skim.forward(kind, n, setup)
    model, tokens = roberta(n, setup), skim.batch(n, setup)

    @torch.no_grad()
    def run() -> Tensor:
        logits: Tensor = model(input_ids=tokens, attention_mask=tokens.ne(skim.PAD).long()).logits
        return logits

    return run


# --- summarization: LED ----------------------------------------------------------------------------------------------


def led(n: int, setup: pyramid.Setup) -> Any:
    """``LEDForConditionalGeneration`` of the same depth and widths; its window is our chunk."""
    found = library()
    torch.manual_seed(1)
    config = found.LEDConfig(
        vocab_size=setup.vocab, d_model=setup.dim, encoder_layers=setup.layers, decoder_layers=setup.layers,
        encoder_ffn_dim=setup.ffn, decoder_ffn_dim=setup.ffn, encoder_attention_heads=setup.heads,
        decoder_attention_heads=setup.heads, attention_window=setup.chunk, max_encoder_position_embeddings=n,
        max_decoder_position_embeddings=setup.target + setup.tokens + 2, dropout=0.1, attention_dropout=0.0,
        pad_token_id=1, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=EOS,
    )  # fmt: skip
    return setup.placed(found.LEDForConditionalGeneration(config))


def _document(n: int, setup: pyramid.Setup) -> dict[str, Tensor]:
    """The benchmark's documents; the first token sees all, as LED's authors do for summaries."""
    source = pyramid.documents(n, setup)
    everywhere = torch.zeros_like(source)
    everywhere[:, 0] = 1
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "global_attention_mask": everywhere}


def encode(kind: str, n: int, setup: pyramid.Setup) -> Callable[[], Any]:
    """Inference forward of the encoder."""
    if kind != LED:
        return pyramid.encoder_forward(kind, n, setup)
    encoder, source = led(n, setup).eval().get_encoder(), _document(n, setup)
    return torch.no_grad()(lambda: encoder(**source))


def train_step(kind: str, n: int, setup: pyramid.Setup) -> Callable[[], Any]:
    """Forward and backward of encoder and decoder, dropout on, no optimizer."""
    if kind != LED:
        return pyramid.train_step(kind, n, setup)
    model, source = led(n, setup).train(), _document(n, setup)
    target = pyramid.documents(setup.target, setup, seed=3)
    return training_step(
        model, lambda: token_loss(model(**source, decoder_input_ids=target, use_cache=False).logits, target)
    )


def generate(kind: str, n: int, setup: pyramid.Setup) -> Callable[[], Any]:
    """Beam search of ``setup.tokens`` tokens and EOS, each library's own."""
    if kind != LED:
        return pyramid.generate(kind, n, setup)
    model, source = led(n, setup).eval(), _document(n, setup)
    steps = setup.tokens + 1
    return torch.no_grad()(
        lambda: model.generate(
            **source, num_beams=setup.beam, min_new_tokens=steps, max_new_tokens=steps, do_sample=False
        )
    )


# --- characters: GPT-2 -----------------------------------------------------------------------------------------------


def gpt2(n: int, setup: hourglass.Setup) -> Any:
    """``GPT2LMHeadModel`` of the same depth and widths, its attention by SDPA."""
    found = library()
    torch.manual_seed(1)
    config = found.GPT2Config(
        vocab_size=setup.types, n_positions=n, n_embd=setup.dim, n_layer=setup.layers, n_head=setup.heads,
        n_inner=setup.ffn, activation_function="gelu", resid_pdrop=setup.dropout, embd_pdrop=setup.dropout,
        attn_pdrop=setup.dropout, bos_token_id=EOS, eos_token_id=EOS, attn_implementation="sdpa",
    )  # fmt: skip
    return setup.placed(found.GPT2LMHeadModel(config))


def language_model_step(kind: str, n: int, setup: hourglass.Setup) -> Callable[[], Any]:
    """Forward and backward over windows of n characters, no optimizer."""
    if kind != GPT2:
        return hourglass.train_step(kind, n, setup)
    model, tokens = gpt2(n, setup).train(), hourglass.text(n, setup)
    target = tokens.roll(-1, 1)
    return training_step(model, lambda: token_loss(model(tokens, use_cache=False).logits, target))


def decode(kind: str, n: int, setup: hourglass.Setup) -> Callable[[], Any]:
    """Read n given characters one by one, with caches, and find the best next one after each."""
    if kind != GPT2:
        from bench_parts.dynamic_pooling.generation import decode as ours

        return ours(kind, n, setup)
    model, tokens = gpt2(n, setup).eval(), hourglass.text(n, setup)

    @torch.no_grad()
    def run() -> None:
        cache = None
        for place in range(n):
            found = model(tokens[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            found.logits.argmax(-1)

    return run


# --- checks ----------------------------------------------------------------------------------------------------------


def parity(setup: Setup) -> Iterator[Check]:
    """RoBERTa computes what ours does; the others have as many weights in their layers, within a tenth."""
    small = replace(setup.sentences, dtype="fp32", batch=6, layers=3, dim=min(setup.sentences.dim, 96))
    expected = classify("packed", 40, small)()
    yield Check("roberta equals packed", difference(classify(ROBERTA, 40, small)(), expected), TOLERANCE)
    ours = pyramid.build(pyramid.PYRAMIDION, 1024, setup.summaries)
    theirs = led(1024, setup.summaries)
    for side in ("encoder", "decoder"):
        found = weights(getattr(theirs.led, side).layers, leave_out="_global") / weights(getattr(ours, side).layers)
        yield Check(f"led's {side} layers have as many weights", abs(found - 1), 0.1)
    model = hourglass.build("vanilla-rotary", 64, setup.characters)
    found = weights(gpt2(64, setup.characters).transformer.h) / weights(model.decoder)
    yield Check("gpt2's layers have as many weights as vanilla-rotary", abs(found - 1), 0.1)


def weights(module: Any, leave_out: str = " ") -> int:
    """Weights of a module without embeddings."""
    return sum(
        weight.numel()
        for name, weight in module.named_parameters()
        if "embed" not in name and leave_out not in name and weight.dim() > 1
    )
