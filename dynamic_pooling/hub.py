"""What ``DynamicPoolingModel.from_pretrained`` returns: texts are continued, scored and cut into segments."""

from typing import Any

from dynamic_pooling.segmentation import TextSegmenter
from fairseq_efficient.hub.language_models import LanguageModelInterface


class DynamicPoolingInterface(LanguageModelInterface):
    """See :class:`LanguageModelInterface`."""

    def segment(self, texts: Any) -> Any:
        """The segments of each text, cleaned as the training data was, in order; one list for a string.

        Raises:
            UserError: a model without boundaries.
        """
        if isinstance(texts, str):
            return self.segment([texts])[0]
        segmenter = TextSegmenter(self.model, self.dictionary)
        return [segmenter.segments(self.coder.clean(text) if self.coder else text) for text in texts]
