"""One flat dataclass with every flag of fairseq's transformer.

fairseq cannot parse overrides of a registered ``TransformerConfig`` subclass (its encoder and decoder parts are
nested), so models register a flat dataclass (``encoder_embed_dim``, ``decoder_layers`` ...) and derive the nested
one in ``build_model`` with :func:`nested_transformer_config`. Architectures of any model: :class:`Architectures`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from types import MappingProxyType
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model
from fairseq.models.transformer.transformer_config import (
    DecoderConfig,
    EncDecBaseConfig,
    QuantNoiseConfig,
    TransformerConfig,
)

_PARTS = {"encoder": EncDecBaseConfig, "decoder": DecoderConfig, "quant_noise": QuantNoiseConfig}
# strings that stock code passes to eval; paths of other models; relics of old checkpoints; features our layers replace
_LEFT_OUT = {
    "xformers_att_config", "layers_to_keep", "char_inputs", "relu_dropout", "export", "base_layers", "base_sublayers",
    "base_shuffle", "no_cross_attention", "cross_self_attention", "adaptive_input", "tie_adaptive_proj",
    "tie_adaptive_weights",
}  # fmt: skip
_SAME_AS_EMBED_DIM = {"decoder_input_dim", "decoder_output_dim"}


def _flat_fields() -> list[tuple[str, Any, Any]]:
    flat = []
    for outer in fields(TransformerConfig):
        part = _PARTS.get(outer.name)
        inner = fields(part) if part else [outer]
        for one in inner:
            if one.name in _LEFT_OUT or one.name == "_name":
                continue
            name = f"{outer.name}_{one.name}" if part else one.name
            kind, default = one.type, one.default
            metadata = dict(one.metadata)
            if part:
                metadata["help"] = f"{outer.name.replace('_', ' ')}: {metadata.get('help', one.name.replace('_', ' '))}"
            if name in _SAME_AS_EMBED_DIM:
                kind, default = Optional[int], None
                metadata["help"] = f"{name.replace('_', ' ')} (default: the decoder's embedding dimension)"
            metadata.setdefault("help", name.replace("_", " "))
            flat.append((name, kind, field(default=default, metadata=metadata)))
    return flat


FlatTransformerConfig = make_dataclass("FlatTransformerConfig", _flat_fields(), bases=(FairseqDataclass,))
FlatTransformerConfig.__module__ = __name__
FlatTransformerConfig.__doc__ = "fairseq's ``TransformerConfig`` with the encoder's and decoder's fields written flat."


def nested_transformer_config(cfg: Any) -> TransformerConfig:
    """The nested ``TransformerConfig`` that fairseq's transformer modules read, from a flat config (or Namespace)."""
    nested = TransformerConfig(encoder=EncDecBaseConfig(), decoder=DecoderConfig(), quant_noise=QuantNoiseConfig())
    for one in dataclasses.fields(FlatTransformerConfig):
        if one.name == "_name":
            continue
        value = getattr(cfg, one.name)
        if value is None and one.name in _SAME_AS_EMBED_DIM:
            value = cfg.decoder_embed_dim
        part = next((p for p in _PARTS if one.name.startswith(f"{p}_")), None)
        target = getattr(nested, part) if part else nested
        setattr(target, one.name.removeprefix(f"{part}_") if part else one.name, value)
    return nested


def with_defaults(dataclass: type, name: str, values: dict[str, Any]) -> type:
    """A subclass of ``dataclass`` called ``name`` with other defaults."""
    known = {one.name: one for one in dataclasses.fields(dataclass)}
    changed = [
        (key, known[key].type, field(default=value, metadata=known[key].metadata)) for key, value in values.items()
    ]
    return make_dataclass(name, changed, bases=(dataclass,))


@dataclass
class AdaptiveSoftmaxConfig(FairseqDataclass):
    """Flags that :func:`fairseq_efficient.modules.adaptive_softmax.adaptive_options` reads."""

    adaptive_softmax_cutoff: Optional[str] = field(
        default=None,
        metadata={"help": "ids at which tails begin, separated by commas (scripts/optimal_cutoffs.py); none: softmax"},
    )
    adaptive_softmax_dropout: float = field(
        default=0.0, metadata={"help": "dropout on the adaptive softmax: on its input and inside its tails"}
    )
    adaptive_softmax_factor: float = field(
        default=4.0, metadata={"help": "each tail of the softmax is this many times narrower than the one before"}
    )
    adaptive_input: bool = field(default=False, metadata={"help": "input embeddings of rare types are narrower, too"})
    adaptive_input_cutoff: Optional[str] = field(
        default=None, metadata={"help": "ids at which input embeddings narrow (default: --adaptive-softmax-cutoff)"}
    )
    adaptive_input_factor: float = field(
        default=4.0,
        metadata={"help": "input embeddings after each cutoff are this many times narrower than those before"},
    )
    tie_adaptive_weights: bool = field(
        default=False, metadata={"help": "adaptive softmax and adaptive input share their embeddings"}
    )
    tie_adaptive_proj: bool = field(
        default=False,
        metadata={"help": "with --tie-adaptive-weights: share the projections of narrower embeddings, too"},
    )


class Architectures:
    """Mixin for models. Each architecture is a registered model of its own whose dataclass has the sizes as defaults.

    An architecture *function* would act on the ``--arch`` route only: on hydra's, the dataclass fills the fields first.
    ``config``: the dataclass of all flags; ``arch``, ``sizes``: name of an architecture, and its defaults.
    """

    arch: str
    config: type
    sizes: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def add_args(cls, parser: Any) -> None:
        # with defaults, so that a task that shares a flag (--max-source-positions) sees the architecture's value; set
        # afterwards, because fairseq makes a switch whose default is True one that turns itself off
        gen_parser_from_dataclass(parser, cls.config(), delete_default=False)
        parser.set_defaults(**cls.sizes)


def register_architectures(model: type[Architectures], architectures: Mapping[str, dict[str, Any]]) -> None:
    """Register a subclass of ``model`` for each architecture: name -> values of its flags."""
    for arch, values in architectures.items():
        name = "".join(part.title() for part in arch.split("_"))
        about = {"__module__": model.__module__, "__doc__": f"``--arch {arch}``", "arch": arch, "sizes": values}
        config = with_defaults(model.config, f"{name}Config", values)
        register_model(arch, dataclass=config)(type(f"{name}Model", (model,), about))


def given(cfg: Any, dataclass: type, names: Iterable[str]) -> list[str]:
    """Those of the names whose value in ``cfg`` is not the default of ``dataclass``."""
    found = []
    for name in names:
        value, default = getattr(cfg, name), getattr(dataclass, name)
        if (str(value) if isinstance(default, str) else value) != default:  # a choice is an enum, or its text
            found.append(name)
    return found


def complete_config(cfg: Any, dataclass: type) -> Any:
    """``dataclass`` filled from a DictConfig, Namespace or dataclass; fields it lacks keep their default.

    A config that did not come through fairseq's own merge with the dataclass (a converted checkpoint, a test) may lack
    fields.
    """
    full = dataclass()
    for one in dataclasses.fields(full):
        if hasattr(cfg, one.name):
            setattr(full, one.name, getattr(cfg, one.name))
    return full
