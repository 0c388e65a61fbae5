"""pretrained/README.md, from what was measured of each model."""

from collections.abc import Iterator, Mapping
from typing import Any

from readme_parts.pretrained import quality_table
from try_pretrained import COMMANDS

from experiment_parts.pages import made
from fairseq_efficient.report.stages import duration

HEAD = """# Small pretrained models

One model for each system, trained from scratch by one script, so that a stranger can try each in seconds:
```bash
python scripts/try_pretrained.py
```
They show that the systems work, no more: a few million parameters each, trained for about an hour. What each can do
stands beside what needs no model at all (its floors). Numbers are those of the files here (matrices in fp16), measured
with fairseq's own tools on whole test splits that nothing was chosen by.
"""
TRY = """
## Try one
From the repository's root, with its environment (`source .venv/bin/activate`):
```bash
{commands}
```
In Python, with `Model.from_pretrained` (each folder's card says how) or `torch.hub`:
```python
import torch

model = torch.hub.load(".", "{first}", "pretrained/{first}", source="local")
```
Every tool of fairseq takes a `model.safetensors` where it takes a checkpoint, and its folder as the data; a training
starts from one with `--finetune-from-model`.
"""
WHERE = """
## Where they are
In the git repository only: wheel and source archive hold the packages alone, without scripts and data, and the models
would be nine tenths of them.
"""
Models = Mapping[str, Any]


def page(document: Mapping[str, Any]) -> str:
    models = document["models"]
    commands = "\n".join(COMMANDS[name] for name in models)
    parts = [HEAD, *_table(document), TRY.format(commands=commands, first=next(iter(models)))]
    parts += ["## Texts and licences", *_texts(models), "", "## How they were made"]
    parts += [line for name, model in models.items() for line in _made(name, model)]
    return "\n".join([*parts, WHERE])


def _table(document: Mapping[str, Any]) -> Iterator[str]:
    yield from quality_table(document)
    yield f"\nTogether {sum(model['bytes'] for model in document['models'].values()) / 1e6:.1f} MB."


def _texts(models: Models) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for name, model in models.items():
        found.setdefault((model["trained_on"], model["license_of_texts"]), []).append(name)
    for (texts, terms), names in found.items():
        yield f"- {', '.join(names)}: {texts}. {terms[0].upper()}{terms[1:]}."
    yield f"\nWeights: {', '.join(sorted({model['license'] for model in models.values()}))}."


def _made(name: str, model: Mapping[str, Any]) -> Iterator[str]:
    each = [
        f"{count:,} updates" + (f" ({what})" if what != "model" else "") for what, count in model["updates"].items()
    ]
    searched = f"the layout `{model['layout']}` searched, then " if model["layout"] else ""
    yield f"- {name}: {searched}{', then '.join(each)}; {duration(model['seconds'])} in all"
    yield f"  {made(model['made'])}"
