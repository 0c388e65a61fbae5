"""Flags of the ``skim_roberta`` model, its task and criterions, and the sizes behind its architectures."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from fairseq import utils
from fairseq.criterions.sentence_prediction import SentencePredictionConfig
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II, MISSING

from fairseq_efficient.ops.token_mask.common import RULES
from fairseq_efficient.ops.token_pack import BACKENDS

PROTECTED = ("cls", "cls+sep", "cls+question")
INFERENCE = ("auto", "masked", "packed")
NORMS = ("real", "padded")


@dataclass
class SkimRobertaConfig(FairseqDataclass):
    """``skim_roberta_base`` is these defaults; see :data:`ARCHITECTURES` for the others."""

    encoder_layers: int = field(default=12, metadata={"help": "number of encoder layers"})
    encoder_embed_dim: int = field(default=768, metadata={"help": "width of the model"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "feed-forward width"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "attention heads"})
    activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(  # type: ignore[valid-type]
        default="gelu", metadata={"help": "activation of the feed-forward"}
    )
    pooler_activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = field(  # type: ignore[valid-type]
        default="tanh", metadata={"help": "activation of the classification head"}
    )
    encoder_normalize_before: bool = field(default=False, metadata={"help": "LayerNorm before each block"})
    no_layernorm_embedding: bool = field(default=False, metadata={"help": "no LayerNorm on the embedding"})
    layer_norm_eps: float = field(
        default=1e-5, metadata={"help": "epsilon of the encoder's LayerNorms (fairseq: 1e-5, BERT: 1e-12)"}
    )
    num_segments: int = field(
        default=0,
        metadata={"help": "segment embeddings: token t has that of its number of </s> before it (0: none; BERT: 2)"},
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout on embeddings and layer outputs"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout on attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout after the feed-forward activation"})
    pooler_dropout: float = field(default=0.0, metadata={"help": "dropout in the classification head"})
    encoder_layerdrop: float = field(
        default=0.0,
        metadata={"help": "LayerDrop: chance that a layer is left out in training, and its predictor with it"},
    )
    max_positions: int = field(default=512, metadata={"help": "longest sentence, in tokens"})
    load_checkpoint_heads: bool = field(
        default=False, metadata={"help": "(re-)register and load heads when loading checkpoints"}
    )
    untie_weights_roberta: bool = field(
        default=False, metadata={"help": "untie weights between embeddings and the language model head"}
    )
    spectral_norm_classification_head: bool = field(
        default=False, metadata={"help": "spectral normalisation of the classification head"}
    )
    quant_noise_pq: float = field(default=0.0, metadata={"help": "share of weights with product quantization noise"})
    quant_noise_pq_block_size: int = field(default=8, metadata={"help": "block size of --quant-noise-pq"})
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "recompute layers in the backward pass: less memory, a third more time"}
    )
    offload_activations: bool = field(
        default=False, metadata={"help": "checkpoint activations and move them to the CPU"}
    )
    cpu_bf16: bool = field(
        default=False,
        metadata={"help": "on CPU compute in bfloat16 (autocast; weights, decisions and loss stay fp32)"},
    )
    skim_predictor_dim: int = field(
        default=0, metadata={"help": "width of the predictors' hidden layer (0: the model's, as published; 64: cheap)"}
    )
    skim_init_bias: float = field(
        default=5.0, metadata={"help": "predictors start from logits of about +x to keep and -x to skip a token"}
    )
    skim_lr_scale: float = field(
        default=1.0,
        metadata={
            "help": "the predictors' learning rate is so many times the others'. At those of fine-tuning, predictors "
            "need hundreds of updates before they skip anything: try 10 on small data sets"
        },
    )
    skim_tau: float = field(default=1.0, metadata={"help": "temperature of the gumbel-softmax in training"})
    skim_noise: float = field(
        default=1.0,
        metadata={
            "help": "the gumbel noise is multiplied by this (0: training decides as evaluation does, which has none)"
        },
    )
    skim_noise_updates: int = field(
        default=0,
        metadata={
            "help": "updates over which the noise falls linearly to 0 (0: it stays, as published). With noise, short "
            "trainings learn to skip at random, which evaluation does not do"
        },
    )
    skim_attn: ChoiceEnum(RULES) = field(  # type: ignore[valid-type]
        default="renorm",
        metadata={
            "help": "attention under the mask. renorm: equals removal of the skipped tokens; postmult: weights are "
            "multiplied by the mask and not normalised again (as published; never packed)"
        },
    )
    skim_protect: ChoiceEnum(PROTECTED) = field(  # type: ignore[valid-type]
        default="cls",
        metadata={
            "help": "tokens that are never skipped. cls: the first; cls+sep: also every </s>; cls+question: all up to "
            "the first </s>"
        },
    )
    skim_layers: str = field(
        default="all", metadata={"help": "layers with a predictor before them: all, none, or e.g. 0,2,4-5"}
    )
    skim_inference: ChoiceEnum(INFERENCE) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "outside training. packed: skipped tokens are dropped; masked: they are hidden (same results, "
            "slower); auto: packed wherever that can compute what is asked for"
        },
    )
    skim_backend: ChoiceEnum(BACKENDS) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "attention over packed tokens. loop: a call for each sentence; bucket: for those of like length; "
            "padded: one for all; varlen: one without padding (CUDA, half precision); auto: the fastest"
        },
    )
    skim_threshold: float = field(
        default=0.0,
        metadata={
            "help": "outside training a token stays where logit(keep) - logit(skip) exceeds this: higher is faster"
        },
    )
    skim_compact_threshold: float = field(
        default=0.0, metadata={"help": "drop skipped tokens only once they are more than this share of the buffer"}
    )
    skim_eval_sample: bool = field(
        default=False, metadata={"help": "draw decisions outside training too (as published: results vary)"}
    )
    skim_norm: ChoiceEnum(NORMS) = field(  # type: ignore[valid-type]
        default="real",
        metadata={"help": "kept ratio over real tokens; padded: padding counts in both terms (as published)"},
    )


@dataclass
class SkimSquadConfig(FairseqDataclass):
    """Flags of ``skim_squad``."""

    data: str = field(
        default=MISSING, metadata={"help": "folder that scripts/prepare_classification.py --format squad made"}
    )
    max_seq_length: int = field(default=384, metadata={"help": "tokens of a row: question, window and special ones"})
    doc_stride: int = field(default=128, metadata={"help": "tokens that neighbouring windows share"})
    max_query_length: int = field(default=64, metadata={"help": "questions are cut to so many tokens (and counted)"})
    init_token: Optional[int] = field(default=0, metadata={"help": "token before the question"})
    separator_token: Optional[int] = field(
        default=None, metadata={"help": "token before the paragraph, after the question's </s> (RoBERTa: 2)"}
    )
    no_shuffle: bool = field(default=False, metadata={"help": "train in the order of the data"})
    classification_head_name: str = field(  # not II(criterion...): fairseq-validate needs no --criterion then
        default="question_answering_head", metadata={"help": "name of the head that scores starts and ends"}
    )
    seed: int = II("common.seed")


@dataclass
class SkimLossConfig(FairseqDataclass):
    """Flags of the price of kept tokens."""

    skim_lambda: float = field(
        default=0.5, metadata={"help": "weight of the kept share of tokens, averaged over layers, in the loss"}
    )
    skim_target_ratio: Optional[float] = field(
        default=None,
        metadata={"help": "if set, the loss is the squared distance of each sentence's kept share from this"},
    )
    skim_lambda_warmup: int = field(
        default=0, metadata={"help": "updates over which --skim-lambda grows linearly from 0"}
    )
    skim_teacher: Optional[str] = field(
        default=None,
        metadata={"help": "checkpoint of a dense model, fine-tuned on this task, whose outputs are also learned"},
    )
    skim_distill_weight: float = field(default=1.0, metadata={"help": "weight of what is learned from --skim-teacher"})
    skim_distill_temperature: float = field(
        default=1.0, metadata={"help": "both sides' logits are divided by this before they are compared"}
    )


@dataclass
class SkimSentencePredictionConfig(SentencePredictionConfig, SkimLossConfig):
    """fairseq's flags and the price."""


@dataclass
class QuestionAnsweringConfig(FairseqDataclass):
    """Flags of answers and of their scores."""

    classification_head_name: str = field(
        default="question_answering_head", metadata={"help": "name of the head that scores starts and ends"}
    )
    n_best_size: int = field(default=20, metadata={"help": "spans of each window that are looked at"})
    max_answer_length: int = field(default=30, metadata={"help": "longest answer, in tokens"})
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={"help": "SQuAD 2.0: no answer if its score exceeds that of the best answer by more than this"},
    )
    squad_best_threshold: bool = field(
        default=False,
        metadata={"help": "SQuAD 2.0: also log the best exact match and F1 over thresholds from -20 to 20, by 0.1"},
    )


@dataclass
class SkimQuestionAnsweringConfig(QuestionAnsweringConfig, SkimLossConfig):
    """The same and the price of kept tokens."""


_BERT: Dict[str, Any] = {"layer_norm_eps": 1e-12, "num_segments": 2}

# what each --arch changes in SkimRobertaConfig; configs/*.yaml hold the same sizes for fairseq-hydra-train
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    "skim_roberta_base": {},
    "skim_roberta_large": {
        "encoder_layers": 24,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
    },
    "skim_roberta_tiny": {
        "encoder_layers": 4,
        "encoder_embed_dim": 128,
        "encoder_ffn_embed_dim": 512,
        "encoder_attention_heads": 4,
        "skim_predictor_dim": 32,
    },
    "skim_bert_base": {**_BERT},
    "skim_minilm_l6": {
        **_BERT,
        "encoder_layers": 6,
        "encoder_embed_dim": 384,
        "encoder_ffn_embed_dim": 1536,
    },
}
