#!/usr/bin/env python3
"""Show what the small pretrained models do, one after another: `python scripts/try_pretrained.py`."""

import argparse
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
EPILOG = """
FOLDER holds a folder of scripts/export_model.py for each system, by the system's name; those that are not there are
told and left out. What a model can do, and what it has to beat (floors), is read from its card.
"""
FLOOR = "floor: "
ABSTRACT = (
    "Objective: To find out whether regular walking lowers blood pressure in elderly patients with hypertension. "
    "Methods: One hundred and twenty patients were randomly assigned to thirty minutes of walking a day or to usual "
    "care for twelve weeks. Results: Systolic blood pressure fell by 8 mmHg in the walking group and by 1 mmHg in the "
    "control group. Conclusion: Regular walking lowers blood pressure in elderly patients."
)
WORDS = "my fellow citizens of the senate and of the house of representatives"
MAILS = (
    "Make money fast\nDear friend, you have been selected to receive a free credit card. Click here now to claim your "
    "prize, this offer will not last. To be removed from our list reply with remove in the subject.",
    "Re: patch for the build\nThanks, I applied it to the tree last night. The tests pass here, but make install still "
    "fails on my laptop with the old compiler. Could you have a look at line 40 of the Makefile when you have time?",
)
_INTERACTIVE = (
    "echo '{text}' | \\\n"
    "  fairseq-interactive pretrained/{system} --user-dir {system} --task {task} {more} --cpu \\\n"
    "  --path pretrained/{system}/model.safetensors {bpe}"
)
_PIECES = "--bpe sentencepiece --sentencepiece-model pretrained/{}/spm.model"
_SAMPLE = "--beam 1 --nbest 1 --sampling --sampling-topp 0.8 --max-len-b "


def _interactive(system: str, task: str, text: str, bpe: str, more: str) -> str:
    return _INTERACTIVE.format(system=system, task=task, text=text, bpe=bpe.format(system), more=more)


COMMANDS = {  # one each, as typed in the repository's root
    "deep_pyramidion": _interactive(
        "deep_pyramidion", "long_summarization", ABSTRACT, _PIECES, "--beam 4 --max-len-b 60"
    ),
    "dynamic_pooling": f"echo '{WORDS}' | \\\n  python scripts/segment.py "
    "pretrained/dynamic_pooling/model.safetensors --cpu",
    "skimming": "echo 'Make money fast: click here for your free credit card' | \\\n  python scripts/classify.py "
    "pretrained/skimming/model.safetensors --cpu",
    "par_search": _interactive("par_search", "segment_lm", WORDS, _PIECES, f"{_SAMPLE}60"),
    "adaptive_span": _interactive("adaptive_span", "segment_lm", WORDS, "--bpe dp_bytes", f"{_SAMPLE}200"),
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=ROOT / "pretrained", help="of the models (default: pretrained)"
    )
    parser.add_argument("--commands", action="store_true", help="also print one command for each, to go on with")
    return parser


# --- cards ------------------------------------------------------------------------------------------------------------


def read_card(folder: Path) -> tuple[str, dict[str, str]]:
    """The title of a model card, and the rows of its first table. UserError if there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"{folder / 'README.md'}: {getattr(err, 'strerror', None) or 'not UTF-8'}") from None
    head, _, _ = text.partition("\n## ")
    rows = dict(re.findall(r"^\| ([^|]*\S) \| (.*\S) \|$", head, re.MULTILINE))
    return head.partition("\n")[0].removeprefix("# "), rows


def known(rows: dict[str, str]) -> Iterator[str]:
    """What a card says of quality and floors, as lines."""
    measured = {name: value for name, value in rows.items() if name not in ("trained on", "license", "task")}
    for name, value in measured.items():
        yield f"  {name}: {value}"


# --- what the models do -----------------------------------------------------------------------------------------------


def _title(folder: Path) -> Iterator[tuple[str, str]]:
    from deep_pyramidion.model import PyramidionModel

    yield ABSTRACT, PyramidionModel.from_pretrained(folder).summarize(ABSTRACT, max_len_b=60)


def _segments(folder: Path) -> Iterator[tuple[str, str]]:
    from dynamic_pooling.model import DynamicPoolingModel

    yield WORDS, "|".join(DynamicPoolingModel.from_pretrained(folder).segment(WORDS))


def _labels(folder: Path) -> Iterator[tuple[str, str]]:
    from skimming.model import SkimRobertaModel

    classifier = SkimRobertaModel.from_pretrained(folder)
    for mail in MAILS:
        kept, total = classifier.counts.kept, classifier.counts.all
        found = classifier.classify(mail)
        share = (classifier.counts.kept - kept) / max(classifier.counts.all - total, 1)
        yield mail, f"{found.label} (probability {max(found.probabilities):.3f}; {share:.0%} of the tokens kept)"


def _continued(model: Any, text: str, length: int) -> Iterator[tuple[str, str]]:
    """A sampled continuation, and what the model makes of the text itself."""
    options = {"sampling": True, "sampling_topp": 0.8}
    yield text, model.generate(text, length=length, **options)
    yield f"{text} (scored)", f"{model.score(text)['bits_per_character']:.2f} bits per character"


def _pieces(folder: Path) -> Iterator[tuple[str, str]]:
    from par_search.model import ParLanguageModel

    yield from _continued(ParLanguageModel.from_pretrained(folder), WORDS, 30)


def _bytes(folder: Path) -> Iterator[tuple[str, str]]:
    from adaptive_span.model import SequentialLanguageModel

    yield from _continued(SequentialLanguageModel.from_pretrained(folder), WORDS, 120)


SHOW: dict[str, Callable[[Path], Iterator[tuple[str, str]]]] = {
    "deep_pyramidion": _title,
    "dynamic_pooling": _segments,
    "skimming": _labels,
    "par_search": _pieces,
    "adaptive_span": _bytes,
}


def show(system: str, folder: Path, command: bool) -> None:
    """Print one model's card in short, its examples, and how long they took."""
    title, rows = read_card(folder)
    print("\n".join([f"\n{system}: {title}", *known(rows)]), flush=True)
    start = time.monotonic()
    for given, found in SHOW[system](folder):
        print("\n".join(["  > " + given.replace("\n", "\n    "), "  " + " ".join(found.split())]), flush=True)
    print(f"  ({time.monotonic() - start:.1f} s)")
    if command:
        print("  " + COMMANDS[system].replace("\n", "\n  "))


def main() -> None:
    args = get_parser().parse_args()
    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: no such folder")
    there = [system for system in SHOW if (args.folder / system / "model.safetensors").is_file()]
    if not there:
        raise UserError(f"{args.folder}: no model inside (a folder of {', '.join(SHOW)} with a model.safetensors)")
    logging.disable(logging.INFO)
    import torch

    import efficient_systems  # noqa: F401

    torch.manual_seed(1)
    for system in there:
        show(system, args.folder / system, args.commands)
    missing = [system for system in SHOW if system not in there]
    if missing:
        print(f"\nnot there: {', '.join(missing)}")


if __name__ == "__main__":
    run_main(main)
