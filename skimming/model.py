"""The ``skim_roberta`` model: fairseq's RoBERTa around an encoder that skips tokens."""

from pathlib import Path
from typing import Any

from fairseq.models import register_model
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from fairseq.models.roberta.model import RobertaEncoder, RobertaModel
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn

from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.loading import load
from fairseq_efficient.plugin.flat_config import Architectures, complete_config, register_architectures
from fairseq_efficient.precision import round_linear_weights_
from skimming.config import ARCHITECTURES, SkimRobertaConfig
from skimming.encoder import SkimEncoder
from skimming.heads import QuestionAnsweringHead, head_macs, reads_first_token_only
from skimming.options import skim_options
from skimming.predictor import SkimPredictor
from skimming.state_dict import missing_heads, put_token_heads, take_token_heads, upgrade_state_dict
from skimming.statistics import Lazy, skim_statistics


class SkimRobertaEncoder(RobertaEncoder):
    """RoBERTa's embedding, our layers, RoBERTa's language model head."""

    def build_encoder(self, args: Any, dictionary: Any, embed_tokens: nn.Embedding) -> SkimEncoder:
        encoder = SkimEncoder(args, dictionary, embed_tokens, skim_options(args), dictionary.eos())
        encoder.apply(init_bert_params)
        return encoder

    def build_lm_head(self, embed_dim: int, output_dim: int, activation_fn: str, weight: Any) -> nn.Module:
        head = super().build_lm_head(embed_dim, output_dim, activation_fn, weight)
        head.layer_norm.eps = self.args.layer_norm_eps
        return head

    def forward(
        self,
        src_tokens: Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        masked_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """src_tokens (B, T) -> features (B, T, C) or logits (B, T, V), and ``inner_states``, ``skim``."""
        x, extra = self.extract_features(src_tokens, return_all_hiddens, **kwargs)
        if not features_only:
            x = self.output_layer(x, masked_tokens=masked_tokens)
        return x, extra

    def extract_features(
        self,
        src_tokens: Tensor,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        first_only: bool = False,
        return_skim_masks: bool = False,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        out = self.sentence_encoder(
            src_tokens,
            return_all_hiddens=return_all_hiddens,
            token_embeddings=token_embeddings,
            first_only=first_only,
            return_masks=return_skim_masks,
        )
        inner_states = out["encoder_states"] if return_all_hiddens else None
        return out["encoder_out"][0].transpose(0, 1), {"inner_states": inner_states, "skim": out["skim"]}


@register_model("skim_roberta", dataclass=SkimRobertaConfig)
class SkimRobertaModel(Architectures, RobertaModel):
    """Transkimmer (Guan et al. 2022, arXiv 2205.07324) that drops what it skips."""

    arch = "skim_roberta"
    config = SkimRobertaConfig
    hub_example = 'print(model.classify("a text"))'
    hub_examples = {"skim_squad": 'print(model.answer("Who wrote it?", "It was written by nobody.").text)'}

    def __init__(self, args: Any, encoder: SkimRobertaEncoder):
        super().__init__(args, encoder)
        self.untrained_predictors: set[int] = set()  # layers whose predictor the loaded checkpoint did not have
        self.untrained_heads: set[str] = set()  # heads that it had no weights for
        self.num_updates: int | None = None  # done; None outside training
        for module in self.modules():
            if isinstance(module, SkimPredictor):  # RobertaModel has initialised all linear layers again
                module.reset_parameters()

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        checkpoint_file: str | None = None,
        data_name_or_path: str | Path | None = None,
        **overrides: Any,
    ) -> Any:
        """A :class:`Classifier` of a model of task sentence_prediction, a :class:`QuestionAnswerer` of skim_squad,
        fairseq's ``RobertaHubInterface`` of others.

        Arguments and errors as of :func:`fairseq_efficient.hub.loading.load`.
        """
        from skimming.hub import Classifier, read_data
        from skimming.squad_hub import QuestionAnswerer

        found = load(model_name_or_path, checkpoint_file, data_name_or_path, **overrides)
        if hasattr(found.task, "label_dictionary"):
            return Classifier(found.model, found.task, read_data(found.data, None, found.task))
        if hasattr(found.task, "version2"):
            return QuestionAnswerer(found.model, found.task, found.data)
        if (found.data / "tokenizer.json").is_file():
            found.config.bpe = {"_name": "wordpiece", "wordpiece_vocab": str(found.data)}
        return RobertaHubInterface(found.config, found.task, found.model)

    @classmethod
    def hub_models(cls) -> dict[str, str]:
        """None by name: a model is a folder or a file."""
        return {}

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "SkimRobertaModel":
        """Raises UserError for flags that are out of range or cannot work together."""
        cfg = complete_config(args, getattr(cls, "__dataclass"))
        skim_options(cfg)
        cfg.layernorm_embedding = not cfg.no_layernorm_embedding
        return cls(cfg, SkimRobertaEncoder(cfg, task.source_dictionary))

    def forward(
        self,
        src_tokens: Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """src_tokens (B, T), right-padded -> what the head gives, or features (B, T, C), or logits (B, T, V).

        Returns:
            (output, extra); in ``extra``: ``aux`` {"skim": kept share of tokens, averaged over layers, summed over
            sentences}, with a gradient in training; ``skim_counts``, what was kept of each sentence; ``stats``
            {name: (numerator, denominator)}; ``skim_masks`` (L, B, T), 1 = the token enters the layer, or None (packed,
            unless called with ``return_skim_masks=True``); ``inner_states`` as fairseq's.

        Raises:
            UserError: ``--skim-inference packed`` with predictors that were never trained.
        """
        self._check_trained()
        head = None
        if classification_head_name is not None:
            head = self.classification_heads[classification_head_name]
            kwargs["first_only"] = reads_first_token_only(head)
        x, extra = self.encoder(src_tokens, features_only or head is not None, return_all_hiddens, **kwargs)
        if head is not None:
            x = head(x)
        skim = extra.pop("skim")
        sizes, longest = self.encoder.sentence_encoder.sizes, self.args.max_positions
        ratio = Lazy(lambda: {"ratio": skim.counts.ratio()})
        extra["aux"] = Lazy(lambda: {"skim": ratio["ratio"].sum()})
        extra["stats"] = Lazy(
            lambda: skim_statistics(skim.counts, sizes, longest, lambda tokens: head_macs(head, tokens))
        )
        extra["skim_counts"], extra["skim_masks"] = skim.counts, skim.masks
        return x, extra

    def _check_trained(self) -> None:
        options = self.encoder.sentence_encoder.options
        if self.untrained_predictors and options.inference == "packed" and not self.training:
            layers = ", ".join(map(str, sorted(self.untrained_predictors)))
            raise UserError(
                f"the checkpoint has no skim predictor for layer {layers}: --skim-inference packed has nothing to "
                "decide by; fine-tune it first, or give --skim-layers none to pack without skipping"
            )

    def train(self, mode: bool = True) -> "SkimRobertaModel":
        if mode and hasattr(self, "untrained_predictors"):
            self.untrained_predictors, self.untrained_heads = set(), set()  # about to be trained
        return super().train(mode)

    def set_num_updates(self, num_updates: int) -> None:
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    def register_question_answering_head(self, name: str) -> None:
        """A head that gives each token a start and an end score: (B, T, 2)."""
        self.classification_heads[name] = QuestionAnsweringHead(self.args.encoder_embed_dim)

    def prepare_for_inference_(self, cfg: Any) -> None:
        super().prepare_for_inference_(cfg)
        round_linear_weights_(self.encoder.sentence_encoder.layers, self.args.cpu_bf16)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        prefix = f"{name}." if name else ""
        self.untrained_heads = missing_heads(self, state_dict, prefix)
        heads = take_token_heads(self, state_dict, prefix)
        super().upgrade_state_dict_named(state_dict, name)
        put_token_heads(self, state_dict, prefix, heads)
        upgrade_state_dict(self, state_dict, prefix)


register_architectures(SkimRobertaModel, ARCHITECTURES)
