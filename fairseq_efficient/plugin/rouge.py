"""Scorer ``rouge`` for ``fairseq-generate --scoring rouge``: the line it prints ends with its settings and versions."""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from fairseq_efficient.text.summarization.rouge import Rouge, corpus_rouge


@dataclass
class RougeScorerConfig(FairseqDataclass):
    """Flags of ``--scoring rouge``."""

    rouge_no_stemmer: bool = field(default=False, metadata={"help": "compare words as they are, not their stems"})
    rouge_bootstrap: int = field(default=1000, metadata={"help": "bootstrap samples of the 95 %% interval; 0: none"})
    rouge_seed: int = field(default=1, metadata={"help": "seed of the bootstrap"})


@register_scorer("rouge", dataclass=RougeScorerConfig)
class RougeScorer(BaseScorer):
    """ROUGE-1/2/L/Lsum F1 of detokenized text (``--bpe sentencepiece``), pieces, or words (``--post-process``)."""

    def corpus(self) -> Rouge:
        """Scores of what was added; UserError if nothing was."""
        return corpus_rouge(
            self.ref,
            self.pred,
            stem=not self.cfg.rouge_no_stemmer,
            samples=self.cfg.rouge_bootstrap,
            seed=self.cfg.rouge_seed,
        )

    def score(self) -> float:
        """ROUGE-Lsum, times 100."""
        return self.corpus().mean[-1]

    def result_string(self) -> str:
        return str(self.corpus())
