"""The small models of pretrained/: what each does, its quality, and what needs no model at all."""

from try_pretrained import FLOOR

from readme_parts.files import Document, load, table


def quality_table(document: Document, folder: str = "") -> list[str]:
    """One line a model, in Markdown; ``folder``: of the models, seen from the page."""
    lines = []
    for name, model in document["models"].items():
        size = f"{model['parameters'] / 1e6:.1f} M parameters, {model['bytes'] / 1e6:.1f} MB"
        quality, floors = [], []
        for what, value in model["results"]:
            if what.startswith(FLOOR):
                floors.append(f"{what.removeprefix(FLOOR)}: {value}")
            else:
                quality.append(f"{what}: **{value}**")
        lines.append(
            [f"[{name}]({folder}{name}/README.md): {model['does']}", size, *map("<br>".join, (quality, floors))]
        )
    return table(("model", "size", "quality", "floors"), lines)


def section() -> str:
    """README's section; empty while there is no model."""
    document = load("pretrained.json")
    if document is None:
        return ""
    return "\n".join([HEAD, *quality_table(document, "pretrained/"), ""])


HEAD = """## Try a trained model first
One small model of each system is in [`pretrained/`](pretrained/README.md), made from scratch by one script
(`scripts/experiments/pretrained.py`). What they do with a text, in seconds, and one command for each to go on with:
```bash
source .venv/bin/activate   # the quickstart below makes it, and begins with the same
python scripts/try_pretrained.py --commands
```
Measured on whole test splits that nothing was chosen by, beside what needs no model at all:
"""
