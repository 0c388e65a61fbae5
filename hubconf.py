"""Entry points of torch.hub: ``torch.hub.load("PATH/OF/THIS/REPOSITORY", "dynamic_pooling", FOLDER, source="local")``.

Each takes a folder (or a checkpoint) and what ``from_pretrained`` of its models takes, and returns their interface:
``summarize``, ``generate``, ``score``, ``segment``, ``classify``, ``answer``.
"""

from typing import Any

dependencies = ["torch", "fairseq", "safetensors", "sentencepiece", "tokenizers"]


def deep_pyramidion(folder: str, **options: Any) -> Any:
    """``.summarize(documents)``"""
    from deep_pyramidion.model import PyramidionModel

    return PyramidionModel.from_pretrained(folder, **options)


def dynamic_pooling(folder: str, **options: Any) -> Any:
    """``.generate(prompts)``, ``.score(texts)``, ``.segment(texts)``"""
    from dynamic_pooling.model import DynamicPoolingModel

    return DynamicPoolingModel.from_pretrained(folder, **options)


def skimming(folder: str, **options: Any) -> Any:
    """``.classify(texts)``, or ``.answer(question, paragraph)``"""
    from skimming.model import SkimRobertaModel

    return SkimRobertaModel.from_pretrained(folder, **options)


def par_search(folder: str, **options: Any) -> Any:
    """``.generate(prompts)``, ``.score(texts)``"""
    from par_search.model import ParLanguageModel

    return ParLanguageModel.from_pretrained(folder, **options)


def adaptive_span(folder: str, **options: Any) -> Any:
    """``.generate(prompts)``, ``.score(texts)``"""
    from adaptive_span.model import SequentialLanguageModel

    return SequentialLanguageModel.from_pretrained(folder, **options)
