"""A trained encoder-decoder that summarizes documents."""

from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.hub.text_models import TextInterface, check_options, check_texts
from fairseq_efficient.text.sentences import unmark_sentences


class SummarizerInterface(TextInterface):
    """fairseq's interface (``encode``, ``decode``, ``translate``, ``cuda``) with :meth:`summarize`.

    The task cuts documents that are too long, and says so.
    """

    def summarize(
        self, documents: Any, beam: int = 4, max_len_b: int = 400, no_repeat_ngram_size: int = 3, **options: Any
    ) -> Any:
        """The summary of each document, in their order, its sentences on lines of their own; a string for a string.

        ``options`` are those of fairseq-generate (``lenpen``, ``min_len`` ...). Documents share batches by the
        interface's ``cfg.dataset`` (``max_tokens``, ``batch_size``).

        Raises:
            UserError: what is no text; options that there are not, that need more than the document, or are out of
                range.
        """
        if isinstance(documents, str):
            return self.summarize([documents], beam, max_len_b, no_repeat_ngram_size, **options)[0]
        check_options(options, beam, len(self.tgt_dict))
        tokens = [self.encode(document) for document in check_texts(documents)]
        if not tokens:
            return []
        limits = {"max_len_a": 0, "max_len_b": max_len_b, "no_repeat_ngram_size": no_repeat_ngram_size}
        found = self.generate(tokens, beam=beam, **{**limits, **options})
        return ["\n".join(unmark_sentences(self.decode(one[0]["tokens"]))) for one in found]

    def score(self, *_: Any, **__: Any) -> Any:
        """Not of summarizers: UserError."""
        raise UserError(
            "score: summaries are scored by scripts/score_rouge.py, and by fairseq-generate --score-reference"
        )
