"""Flags of the ``pyramidion`` model, and the sizes behind its architectures."""

from dataclasses import dataclass, field
from typing import Any, Dict

from fairseq.dataclass import ChoiceEnum

from fairseq_efficient.plugin.flat_config import FlatTransformerConfig


@dataclass
class PyramidionConfig(FlatTransformerConfig):
    """``pyramidion_base`` is these defaults; see :data:`ARCHITECTURES` for the other sizes."""

    encoder_layers: int = field(default=2, metadata={"help": "number of encoder layers"})
    decoder_layers: int = field(default=2, metadata={"help": "number of decoder layers"})
    attention_dropout: float = field(
        default=0.1,
        metadata={
            "help": "dropout on attention weights; above 0 they are materialised in training (slower): 0 is fastest"
        },
    )
    encoder_pooling: ChoiceEnum(["lambda", "topk"]) = field(  # type: ignore[valid-type]
        default="lambda", metadata={"help": "topk: trainable pooling between encoder layers; lambda: no pooling"}
    )
    enc_layers_and_token_width: str = field(
        default="{0: 2048, 1: 512}",
        metadata={
            "help": "tokens kept after each encoder layer, e.g. 0:4096,1:2048,2:512 or '{0: 4096, 1: 512}'; layers "
            "left out keep what reaches them; any width works; empty means no pooling. Read with --encoder-pooling topk"
        },
    )
    chunk_size: int = field(
        default=512, metadata={"help": "tokens that see each other in chunked encoder self-attention"}
    )
    chunk_overlap: int = field(
        default=0, metadata={"help": "tokens beyond each border that a chunk also attends to (0: the paper)"}
    )
    chunk_shift: bool = field(
        default=False, metadata={"help": "move the borders by half a chunk in every other layer, so that chunks mix"}
    )
    use_sparse_attn: ChoiceEnum(["pooler", "only_blockwise", "pooler_no_block"]) = field(  # type: ignore[valid-type]
        default="pooler",
        metadata={
            "help": "encoder self-attention: only_blockwise: always chunked, also without pooling (the paper's "
            "blockwise baseline); pooler: chunked with --encoder-pooling topk, full without; pooler_no_block: full"
        },
    )
    flip_right: int = field(
        default=1, metadata={"help": "1: a pooling round pairs rank i with rank n-1-i; 0: with rank i + n/2"}
    )
    sort_back: int = field(
        default=0, metadata={"help": "1: pooled tokens keep the order of the text; 0: by descending score"}
    )
    topk_softmax_base: float = field(
        default=20, metadata={"help": "sharpness of pooling (> 1): a pair blends by softmax(base^score)"}
    )
    topk_softmax_base_final: float = field(
        default=0,
        metadata={"help": "if set, the base moves to this value (geometrically) over --topk-softmax-base-updates"},
    )
    topk_softmax_base_updates: int = field(
        default=0, metadata={"help": "updates over which the base moves to --topk-softmax-base-final"}
    )
    hard_topk_inference: bool = field(
        default=False, metadata={"help": "outside training keep exactly the top-k tokens, unblended"}
    )
    encoder_pooling_arch: ChoiceEnum(["linear", "ffn"]) = field(  # type: ignore[valid-type]
        default="linear",
        metadata={"help": "scorer: one linear layer, or linear-ReLU-linear with a quarter of the width"},
    )
    global_positions: int = field(
        default=0,
        metadata={
            "help": "accepted as in the original; both 0 and 1 count positions over the document "
            "(see --chunk-positions)"
        },
    )
    chunk_positions: bool = field(default=False, metadata={"help": "restart positions in each chunk of --chunk-size"})
    no_decoder_positional_embeddings: bool = field(default=False, metadata={"help": "decoder without positions"})
    cpu_bf16: bool = field(
        default=False, metadata={"help": "on CPU compute in bfloat16 (autocast; weights, scores and loss stay fp32)"}
    )


_BART: Dict[str, Any] = {
    "activation_fn": "gelu",
    "attention_dropout": 0.0,
    "encoder_learned_pos": True,
    "decoder_learned_pos": True,
    "no_scale_embedding": True,
    "layernorm_embedding": True,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "encoder_pooling": "topk",
    "max_source_positions": 4096,
    "sort_back": 1,
}

# what each --arch changes in PyramidionConfig; configs/*.yaml hold the same sizes for fairseq-hydra-train
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    "pyramidion_base": {},
    "pyramidion_tiny": {
        "encoder_embed_dim": 128,
        "encoder_ffn_embed_dim": 512,
        "encoder_attention_heads": 4,
        "encoder_layers": 4,
        "decoder_embed_dim": 128,
        "decoder_ffn_embed_dim": 512,
        "decoder_attention_heads": 4,
        "decoder_layers": 2,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "attention_dropout": 0.0,
        "share_all_embeddings": True,
        "encoder_pooling": "topk",
        "max_source_positions": 4096,
        "enc_layers_and_token_width": "0:2048,1:1024,2:512,3:256",
        "chunk_size": 256,
        "sort_back": 1,
    },
    "pyramidion_deep": {
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "encoder_layers": 6,
        "decoder_embed_dim": 768,
        "decoder_ffn_embed_dim": 3072,
        "decoder_attention_heads": 12,
        "decoder_layers": 6,
        "attention_dropout": 0.0,
        "encoder_pooling": "topk",
        "max_source_positions": 8192,
        "enc_layers_and_token_width": "0:4096,1:2048,2:1024,3:512",
        "sort_back": 1,
    },
    "pyramidion_blockwise": {"use_sparse_attn": "only_blockwise", "attention_dropout": 0.0},
    "pyramidion_bart_base": {
        **_BART,
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_attention_heads": 12,
        "encoder_layers": 6,
        "decoder_embed_dim": 768,
        "decoder_ffn_embed_dim": 3072,
        "decoder_attention_heads": 12,
        "decoder_layers": 6,
        "enc_layers_and_token_width": "1:2048,3:1024",
    },
    "pyramidion_bart_large": {
        **_BART,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "encoder_layers": 12,
        "decoder_embed_dim": 1024,
        "decoder_ffn_embed_dim": 4096,
        "decoder_attention_heads": 16,
        "decoder_layers": 12,
        "enc_layers_and_token_width": "3:2048,7:1024",
    },
}
