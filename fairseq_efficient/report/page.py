"""A :class:`~fairseq_efficient.report.parts.Page` as one HTML file that needs nothing else."""

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fairseq_efficient.errors import UserError
from fairseq_efficient.files import write_text
from fairseq_efficient.report.parts import Page


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def render(page: Page) -> str:
    """The page's HTML; all text in it is escaped."""
    env = Environment(
        loader=PackageLoader("fairseq_efficient.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["anchor"] = _anchor
    return env.get_template("page.html").render(page=page)


def write(page: Page, path: Path) -> None:
    """Render into a file, replaced as a whole. UserError if it cannot be written."""
    html = render(page)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}") from None
    write_text(path, html)
