"""What a language model with memory looks like to the ``segment_lm`` task."""

from typing import Any

from fairseq.models import FairseqLanguageModel
from torch import Tensor

from fairseq_efficient.flags import ANY_LENGTH
from fairseq_efficient.stream_memory import MemoryCell


class StreamLanguageModel(FairseqLanguageModel):
    """A decoder that reads blocks and remembers; between two blocks this class carries its memory to a cell outside.

    The decoder is a function of what it is given: ``decoder(tokens, memory=None, memory_length=None, **)`` with tokens
    (B, T) returns logits (B, T, V) and extras, where ``extras["memory"]`` is the list of tensors (rows first) that it
    wants back with the next block. In incremental decoding it gets ``incremental_state`` and no memory; its attribute
    ``decoding_memory`` says how much it then remembers, if that is not its own choice (``--eval-mem-len``).

    A model's config should hold ``tokens_per_sample: int = II("task.tokens_per_sample")``, by which evaluation knows
    the length of blocks in training.
    """

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor | None = None, memory: MemoryCell | None = None, **flags: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """src_tokens (B, T), pads only at the right -> logits (B, T, V) and extras."""
        if memory is None:
            return self.decoder(src_tokens, **flags)
        logits, extra = self.decoder(src_tokens, memory=memory.take(self), memory_length=memory.length, **flags)
        memory.put(self, extra.pop("memory"))
        return logits, extra

    def memory_reach(self, tokens: int, memory_length: int | None = None) -> int | None:
        """How many tokens before a block of ``tokens`` its outputs can depend on; None if there is no bound.

        Evaluation reads so many again, unscored, where it cuts a stream. Every layer that attends over memory reaches
        back by the blocks that its memory spans: for n such layers and memory M, n * ceil(M / tokens) blocks.
        """
        return None

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Called by fairseq's tools before evaluation and generation."""
        super().prepare_for_inference_(cfg)
        self.decoder.decoding_memory = getattr(getattr(cfg, "task", None), "eval_mem_len", None)

    def draws(self) -> dict[str, Any]:
        """Random choices of one training step that all rows share: arguments of :meth:`forward`, no tensors.

        Asked for by ``--batch-split``, so that the parts of a batch choose alike.
        """
        return {}

    def after_update(self, optimizer: Any) -> None:
        """Called by the task after each step of the (fairseq) optimizer; for parameters that have a range."""

    def trained_by(self, criterion: Any) -> None:
        """Called by the task when it has built the criterion; for models whose flags need a certain one."""

    def max_positions(self) -> int:
        """No limit."""
        return ANY_LENGTH


def layers_reach(layers: int, memory_length: int, tokens: int) -> int:
    """:meth:`StreamLanguageModel.memory_reach` of a stack of ``layers`` that attend over ``memory_length`` places."""
    return layers * -(-memory_length // tokens) * tokens
