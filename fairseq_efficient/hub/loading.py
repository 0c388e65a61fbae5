"""A trained model, its task and its data folder, from a folder or a checkpoint."""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CommonConfig, DatasetConfig, GenerationConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from fairseq_efficient.errors import UserError

NAMES = ("model.safetensors", "model.pt", "checkpoint_best.pt", "checkpoint_last.pt")
DICTIONARIES = ("dict.txt", "dict.src.txt", "input0/dict.txt")


class Loaded(NamedTuple):
    """``config`` has all sections that fairseq's hub interfaces read; ``data``: dictionaries and tokenizer."""

    model: Any
    config: DictConfig
    task: Any
    data: Path


def find_checkpoint(place: Path, name: str | None = None) -> Path:
    """The checkpoint in a folder, or the file itself; UserError where there is none."""
    if place.is_file() and name is None:
        return place
    if not place.is_dir():
        raise UserError(f"{place}: no such file or folder")
    for one in (name,) if name else NAMES:
        if (place / one).is_file():
            return place / one
    raise UserError(f"{place}: no {name or ', '.join(NAMES)} inside")


def load(
    model_name_or_path: str | Path,
    checkpoint_file: str | None = None,
    data_name_or_path: str | Path | None = None,
    **overrides: Any,
) -> Loaded:
    """A model in evaluation mode, on the CPU.

    Args:
        model_name_or_path: a folder (of ``scripts/export_model.py``, or a ``--save-dir``) or a checkpoint.
        checkpoint_file: its name in the folder (default: the first of :data:`NAMES`).
        data_name_or_path: the prepared data (default: the folder, if a dictionary is in it, else where the model was
            trained).
        overrides: options of model and task, by their names in the configuration.

    Raises:
        UserError: no such file, a damaged or foreign one, no dictionary.
    """
    checkpoint = find_checkpoint(Path(model_name_or_path), checkpoint_file)
    data = data_name_or_path
    if data is None and any((checkpoint.parent / name).is_file() for name in DICTIONARIES):
        data = checkpoint.parent
    if data is not None:
        overrides["data"] = str(data)
    models, config, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], overrides)
    folder = Path((getattr(task, "args", None) or task.cfg).data)
    return Loaded(models[0].eval(), complete(config), task, folder)


def complete(config: DictConfig) -> DictConfig:
    """``config`` with the sections of decoding and batching at fairseq's defaults, not those of the training."""
    found = config.copy()
    with open_dict(found):
        for name, kind in (("generation", GenerationConfig), ("dataset", DatasetConfig), ("common", CommonConfig)):
            found[name] = OmegaConf.structured(kind())
        for name in ("tokenizer", "bpe"):
            found.setdefault(name, None)
            for value in (found[name] or {}).values() if OmegaConf.is_dict(found[name]) else ():
                if "://" in str(value):  # fairseq would fetch it
                    raise UserError(f"the checkpoint's {name} is at {value}: fetch it yourself, and name the file")
    return found


class Pretrained:
    """Mixin for models: ``from_pretrained`` returns the model's interface.

    ``hub_example``: for model cards; ``hub_examples``: of single tasks.
    """

    hub_example = ""
    hub_examples: ClassVar[dict[str, str]] = {}

    @classmethod
    def hub_interface(cls) -> Any:
        """The class that :meth:`from_pretrained` makes: ``interface(model, config, task, data)``."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        checkpoint_file: str | None = None,
        data_name_or_path: str | Path | None = None,
        **overrides: Any,
    ) -> Any:
        """The trained model behind an interface for texts; arguments and errors as of :func:`load`."""
        return cls.hub_interface()(*load(model_name_or_path, checkpoint_file, data_name_or_path, **overrides))

    @classmethod
    def hub_models(cls) -> dict[str, str]:
        """None by name: a model is a folder or a file."""
        return {}


class PretrainedLanguageModel(Pretrained):
    """The same for language models: texts are continued and scored."""

    hub_example = (
        'print(model.generate("We must", length=100, sampling=True, sampling_topk=10))\n'
        'print(model.score("We must")["bits_per_character"])'
    )

    @classmethod
    def hub_interface(cls) -> Any:
        from fairseq_efficient.hub.language_models import LanguageModelInterface

        return LanguageModelInterface
