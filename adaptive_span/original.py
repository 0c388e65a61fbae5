"""The original's models (facebookresearch/adaptive-span): sizes read off their weights, and the weights renamed."""

import itertools
import math
import re
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from adaptive_span.config import SequentialConfig
from adaptive_span.decoder import SequentialDecoder
from adaptive_span.model import decoder_options
from fairseq_efficient.checkpoint_rules import building
from fairseq_efficient.errors import UserError
from fairseq_efficient.originals import BareTypes, bare_names, load_weights

_EOS = "<eos>"
_LAYER = r"layers\.(\d+)\."
_KEYS = (  # pattern of the original's name -> ours
    (r"in_emb\.weight", "embed_tokens.weight"),
    (r"in_emb\.emb_layers\.(\d+)\.weight", r"embed_tokens.embeddings.\1.0.weight"),
    (r"in_emb\.emb_projs\.(\d+)", r"embed_tokens.embeddings.\1.1.weight"),
    (r"out_emb\.(weight|bias)", r"output_projection.\1"),
    (r"out_emb\.cluster_proj\.(weight|bias)", r"adaptive_softmax.head.class_proj.\1"),
    (r"out_emb\.out_layers\.0\.(weight|bias)", r"adaptive_softmax.head.words.\1"),
    (r"out_emb\.out_projs\.0", "adaptive_softmax.head.words.proj"),
    (r"out_emb\.out_layers\.(\d+)\.(weight|bias)", r"adaptive_softmax.tail.{\1}.\2"),
    (r"out_emb\.out_projs\.(\d+)", r"adaptive_softmax.tail.{\1}.proj"),
    (_LAYER + r"attn\.proj_out\.weight", r"layers.\1.self_attn.out_proj.weight"),
    (_LAYER + r"attn\.attn\.adaptive_span\._mask\.current_val", r"layers.\1.self_attn.spans.ratio"),
    (_LAYER + r"attn\.attn\.persistent_memory\.key", r"layers.\1.self_attn.persistent_key"),
    (_LAYER + r"attn\.attn\.persistent_memory\.val", r"layers.\1.self_attn.persistent_value"),
    (_LAYER + r"norm1\.(weight|bias)", r"layers.\1.self_attn_layer_norm.\2"),
    (_LAYER + r"norm2\.(weight|bias)", r"layers.\1.final_layer_norm.\2"),
    (_LAYER + r"ff\.(fc[12])\.(weight|bias)", r"layers.\1.\2.\3"),
)
# a table, not a weight; and weights that the original registers twice
_SKIPPED = re.compile(r".*\.mask_template|.*\.persistent_memory\.adaptive_span\..*")
_PROJECTION = re.compile(_LAYER + r"attn\.proj_(query|key|val)\.weight")


def config_from_weights(state: dict[str, Tensor], params: dict[str, Any] | None = None) -> SequentialConfig:
    """Our flags, its behaviour switched on. What weights do not show (the ramp, the span loss, whether caches are
    trimmed, dropout) is taken from ``params`` if they are known (names of its model's arguments), else published.

    Raises:
        UserError: not the weights of such a model.
    """
    weights, params = bare_names(state), params or {}
    try:
        _, head_dim, span = weights["key_pe"].shape
        dim = weights["layers.0.attn.proj_out.weight"].size(0)
    except KeyError as err:
        raise UserError(f"weights hold no {err}: not a model of adaptive-span") from None
    learned, rates = params.get("adapt_span_params", {}), params.get("dropout", 0.0)
    persistent = weights.get("layers.0.attn.attn.persistent_memory.key")
    feed_forward = weights.get("layers.0.ff.fc1.weight")
    adapt = "layers.0.attn.attn.adaptive_span._mask.current_val" in weights
    cfg = SequentialConfig(
        decoder_layers=1 + max(int(found[1]) for name in weights if (found := re.match(_LAYER, name))),
        decoder_embed_dim=dim,
        decoder_attention_heads=dim // head_dim,
        decoder_ffn_embed_dim=1 if feed_forward is None else feed_forward.size(0),
        attn_span=span,
        adapt_span=adapt,
        adapt_span_ramp=int(learned.get("adapt_span_ramp", 32)) if adapt else 32,
        adapt_span_loss=float(learned.get("adapt_span_loss", 0.0)) if adapt else 0.0,
        adapt_span_cache=bool(learned.get("adapt_span_cache", True)) if adapt else False,
        adapt_span_mask="orig" if adapt else "exact",
        empty_cache="zeros",
        pers_mem_size=0 if persistent is None else persistent.size(-1),
        dropout=float(rates),
    )
    _adaptive_flags(cfg, weights)
    return cfg


def _adaptive_flags(cfg: SequentialConfig, weights: dict[str, Tensor]) -> None:
    bands = [weights[name] for name in sorted(weights) if re.fullmatch(r"in_emb\.emb_layers\.\d+\.weight", name)]
    if not bands:
        return
    cuts = list(itertools.accumulate(len(band) for band in bands))[:-1]
    cfg.adaptive_input = True
    cfg.adaptive_softmax_cutoff = ",".join(map(str, cuts))
    factor = round(bands[0].size(1) / bands[1].size(1))
    cfg.adaptive_softmax_factor = cfg.adaptive_input_factor = float(factor)
    pairs = []
    for i in range(len(bands)):
        pairs.append((f"in_emb.emb_layers.{i}.weight", f"out_emb.out_layers.{i}.weight"))
        pairs.append((f"in_emb.emb_projs.{i}", f"out_emb.out_projs.{i}"))
    tied = all(torch.equal(weights[one], weights[other]) for one, other in pairs)
    cfg.tie_adaptive_weights = cfg.tie_adaptive_proj = tied


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our decoder's names and in its shapes; UserError for a name that the original does not have."""
    weights, found = bare_names(state), {}
    for name, value in weights.items():
        if _SKIPPED.fullmatch(name):
            continue
        if name == "key_pe":  # (1, d, S), the nearest distance last
            found["positions"] = value.squeeze(0).t().flip(0).contiguous()
        elif match := _PROJECTION.fullmatch(name):
            if match[2] == "query":
                parts = [weights[f"layers.{match[1]}.attn.proj_{kind}.weight"] for kind in ("query", "key", "val")]
                found[f"layers.{match[1]}.self_attn.qkv_proj.weight"] = torch.cat(parts)
        else:
            key = _renamed(name)
            found[key] = _reshaped(key, value)
    return found


def _renamed(name: str) -> str:
    for pattern, ours in _KEYS:
        if match := re.fullmatch(pattern, name):
            return re.sub(r"\{(\d+)\}", lambda number: str(int(number[1]) - 1), match.expand(ours))
    raise UserError(f"weights hold {name}, which no model of adaptive-span has")


def _reshaped(key: str, value: Tensor) -> Tensor:
    part = key.rpartition(".")[2]
    if part == "ratio":
        return value.flatten()
    if part == "persistent_key":  # (1, H, d, N)
        return value.reshape(value.shape[-3:]).transpose(-1, -2).contiguous()
    if part == "persistent_value":  # (1, H, N, d)
        return value.reshape(value.shape[-3:])
    if "class_proj" in key:  # column -i is of tail i
        return value.flip(0)
    return value


def decoder_from_original(state: dict[str, Tensor], params: dict[str, Any] | None = None) -> SequentialDecoder:
    """An evaluation-mode decoder over the original's own ids, without special symbols."""
    weights = bare_names(state)
    types = BareTypes(sum(len(value) for name, value in weights.items() if _is_input(name)))
    cfg = config_from_weights(state, params)
    with building({"decoder_layers": cfg.decoder_layers}, weights, "of the original"):
        decoder = SequentialDecoder(types, decoder_options(cfg, types))
    load_weights(decoder, rename(state))
    return decoder.eval()


def _is_input(name: str) -> bool:
    return bool(re.fullmatch(r"in_emb\.(weight|emb_layers\.\d+\.weight)", name))


def model_from_original(
    state: dict[str, Tensor], dictionary: Dictionary, path: str = "of the original"
) -> tuple[SequentialDecoder, SequentialConfig]:
    """An evaluation-mode decoder over a fairseq dictionary, and its flags; see :func:`weights_for_dictionary`.

    Raises:
        UserError: weights of another model or dictionary; names that ask for a much larger model than they are.
    """
    cfg = config_from_weights(state)
    if cfg.adaptive_softmax_cutoff:
        cuts = [int(cut) + dictionary.nspecial for cut in cfg.adaptive_softmax_cutoff.split(",")]
        cfg.adaptive_softmax_cutoff = ",".join(map(str, cuts))
    weights = weights_for_dictionary(rename(state), dictionary)
    with building({"decoder_layers": cfg.decoder_layers}, weights, path):
        decoder = SequentialDecoder(dictionary, decoder_options(cfg, dictionary))
    load_weights(decoder, weights)
    return decoder.eval(), cfg


def weights_for_dictionary(weights: dict[str, Tensor], dictionary: Dictionary) -> dict[str, Tensor]:
    """Renamed weights for a fairseq dictionary whose types after the specials are the original's, in its order.

    Special symbols get the mean embedding and so low an output bias that they are never predicted: probabilities of
    the others stay exactly those of the original. But where the original has an ``<eos>``, fairseq's end of sentence
    takes its place.
    """
    prefixes = ("embed_tokens.weight", "output_projection.weight", "output_projection.bias")
    if prefixes[0] not in weights:
        head = "adaptive_softmax.head.words"
        prefixes = ("embed_tokens.embeddings.0.0.weight", f"{head}.weight", f"{head}.bias")
    embed, out, bias = (weights[name] for name in prefixes)
    specials = dictionary.nspecial
    names = re.compile(r"embed_tokens\.(weight|embeddings\.\d+\.0\.weight)")
    known = sum(len(value) for name, value in weights.items() if names.fullmatch(name))
    if len(dictionary) - specials != known:
        raise UserError(f"the dictionary has {len(dictionary) - specials} symbols, the checkpoint {known}")
    low = torch.full((specials,), -1e4, dtype=bias.dtype)
    embed = torch.cat([embed.mean(0, keepdim=True).expand(specials, -1), embed])
    out = torch.cat([torch.zeros_like(out[:1]).expand(specials, -1), out])
    bias = torch.cat([low, bias])
    if _EOS in dictionary.indices and dictionary.index(_EOS) < len(embed):
        theirs, ours = dictionary.index(_EOS), dictionary.eos()
        for table in (embed, out, bias):
            table[ours] = table[theirs]
        bias[theirs] = -1e4
    found = {**weights, **dict(zip(prefixes, (embed, out, bias), strict=True))}
    if "embed_tokens.embeddings.0.0.weight" in found and torch.equal(weights[prefixes[0]], weights[prefixes[1]]):
        found[prefixes[1]] = embed  # tied: the bias alone keeps special symbols out
    return found


def span_loss(decoder: SequentialDecoder) -> list[float]:
    """``lambda * S * mean of the shares`` of each layer."""
    weight = decoder.options.span_loss
    return [weight * math.fsum(known) / len(known) if known else 0.0 for known in decoder.known()]
