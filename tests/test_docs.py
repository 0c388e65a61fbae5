"""What the documents name exists: flags, files, links, and rows of the benchmarks. Nothing is run here."""

import argparse
import importlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

from fairseq_efficient.systems import SYSTEMS
from tests.util import ROOT, load_script, run_here

GUIDES = tuple(f"docs/{name}.md" for name in ("architecture", "extending", "migrating", "performance", "reliability"))
DOCUMENTS = (
    *GUIDES, "README.md", "docs/results/README.md", "CONTRIBUTING.md", *(f"{name}/README.md" for name in SYSTEMS)
)  # fmt: skip

# a system -> ways to train it; flags of docs/migrating.md are those of any of them
MIGRATING = {
    "deep_pyramidion": (
        "--task translation --arch pyramidion_base --optimizer adam --lr-scheduler polynomial_decay "
        "--total-num-update 9",
        "--task long_summarization --arch pyramidion_deep --criterion label_smoothed_cross_entropy",
    ),
    "dynamic_pooling": (
        "--task dynamic_pooling_lm --arch dynamic_pooling_lm_gumbel --criterion dynamic_pooling_cross_entropy "
        "--optimizer adam --lr-scheduler cosine",
    ),
    "skimming": (
        "--task sentence_prediction --arch skim_bert_base --criterion skim_sentence_prediction --optimizer adam "
        "--lr-scheduler polynomial_decay --total-num-update 9",
        "--task skim_squad --arch skim_bert_base --criterion skim_question_answering",
    ),
    "par_search": (
        "--task par_search --arch par_supernet --criterion par_search --optimizer par_search --lr-scheduler cosine",
        "--task segment_lm --arch par_lm --criterion par_search --optimizer adam",
    ),
    "adaptive_span": (
        "--task segment_lm --arch sequential_lm --criterion adaptive_span_loss --optimizer adagrad_with_grad_clip "
        "--lr-scheduler fixed",
        "--task segment_lm --arch sequential_lm --optimizer sgd",
        "--task segment_lm --arch sequential_lm --optimizer adam",
    ),
}
FOREIGN = {  # programs that are not ours -> those of their flags that the documents name
    "torchrun": {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"},
    "pip": {"--no-build-isolation", "--no-deps", "--dest"},
    "fairseq's roberta": {"--mha-heads-to-keep"},
}
SUFFIXES = (".py", ".md", ".sh", ".yaml", ".toml", ".png", ".css")
TOOLS = ("train", "generate", "validate", "eval-lm", "interactive", "hydra-train")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def our_words(document: str) -> str:
    """A document without what tables of docs/migrating.md say of others: the first column."""
    text = read(document)
    return re.sub(r"^\| [^|]* \|", "|", text, flags=re.MULTILINE) if document == "docs/migrating.md" else text


def spans(text: str) -> Iterator[str]:
    """What stands between backticks, on one line or two."""
    for found in re.findall(r"`([^`]+)`", without_code(text)):
        yield " ".join(found.split())


# --- flags -----------------------------------------------------------------------------------------------------------


def parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> set[str]:
    """The flags of one of fairseq's parsers, with those that ``arguments`` add to it."""
    from fairseq import options

    with mock.patch.object(sys, "argv", ["tool"]):
        options.parse_args_and_arch(parser, arguments, parse_known=True)
    return set(parser._option_string_actions)


@cache
def training_flags(system: str) -> set[str]:
    """Of fairseq-train with this system, fairseq's own among them."""
    from fairseq import options

    import efficient_systems  # noqa: F401

    found: set[str] = set()
    for one in MIGRATING[system]:
        with mock.patch.object(sys, "argv", ["tool"]):
            parser = options.get_training_parser()
        found |= parsed(parser, ["data", *one.split()])
    return found


@cache
def tool_flags(tool: str) -> set[str]:
    """Of ``fairseq-<tool>`` beside training, without those of a model."""
    from fairseq import options

    import efficient_systems  # noqa: F401

    make = {
        "generate": options.get_generation_parser,
        "interactive": options.get_interactive_generation_parser,
        "validate": options.get_validation_parser,
        "eval-lm": options.get_eval_lm_parser,
    }
    if tool == "hydra-train":
        return {"--config-dir", "--config-name"}
    with mock.patch.object(sys, "argv", ["tool"]):
        parser = make[tool]()
    return parsed(parser, ["data", "--path", "x.pt", *(["--task", "segment_lm"] if tool != "generate" else [])])


@cache
def script_flags(name: str) -> set[str]:
    """Those that its source, or what benches and pages share, gives to ``add_argument``."""
    paths = sorted((ROOT / "scripts").rglob(name))
    assert paths, f"no script {name}"
    if any(path.parent.name == "bench" for path in paths):
        paths.append(ROOT / "fairseq_efficient/bench/command.py")
    if any(path.parent.name == "experiments" for path in paths):
        parts = ROOT / "scripts/experiments/experiment_parts"
        paths += [parts / shared for shared in ("flags.py", "language_models/plan.py")]
    if name == "report.py":
        paths += sorted((ROOT / "scripts/report_pages").glob("*.py"))
    return flags_in(paths)


def flags_in(paths: Iterable[Path]) -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in paths]
    return {flag for source in sources for flag in re.findall(r"[\"'](--[a-z][a-z0-9-]*)[\"']", source)}


def every_flag() -> set[str]:
    """Of all tools and scripts."""
    scripts = {path.name for path in (ROOT / "scripts").rglob("*.py")}
    found = set(itertools.chain.from_iterable(FOREIGN.values()))
    for path in (ROOT / "scripts").glob("*.sh"):
        found |= set(re.findall(r"(--[a-z][a-z0-9-]*)\)", path.read_text(encoding="utf-8")))
    found |= flags_in([ROOT / "fairseq_efficient/report/stages.py"])  # python -m
    found |= {"--user-dir", "--help"}.union(*map(training_flags, SYSTEMS), *map(script_flags, sorted(scripts)))
    return found.union(*(tool_flags(tool) for tool in TOOLS if tool != "train"))


def unknown(span: str, system: str) -> list[str]:
    """The flags of a code span that what it names does not have: a script, a tool, or fairseq-train."""
    words = span.split()
    name = words[0].rpartition("/")[2]
    if name.endswith(".py"):
        known = script_flags(name)
    elif name.startswith("fairseq-") and name != "fairseq-train":
        known = tool_flags(name.removeprefix("fairseq-"))
    else:
        known = training_flags(system)
    return [word for word in words if word.startswith("--") and word not in known]


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(titles, rows) of each table."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        titles, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        yield titles, rows


@pytest.mark.parametrize("system", SYSTEMS)
def test_flags_to_migrate_to_exist(system: str):
    guide = read("docs/migrating.md")
    (section,) = re.findall(rf"^## [^\n]*: `{system}`$(.*?)(?=^## |\Z)", guide, re.DOTALL | re.MULTILINE)
    cells = []
    for titles, rows in tables(section):
        wanted = [number for number, title in enumerate(titles) if title in ("ours", "back by")]
        assert len(wanted) == 1, titles
        assert all(len(row) == len(titles) for row in rows), [row for row in rows if len(row) != len(titles)]
        cells += [row[wanted[0]] for row in rows]
    assert len(cells) > 10
    wrong = [(cell, flag) for cell in cells for span in spans(cell) for flag in unknown(span, system)]
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS)
def test_flags_exist(document: str):
    """In the text of any document, of any tool."""
    words = itertools.chain.from_iterable(span.split() for span in spans(our_words(document)))
    named = {word.rstrip(",;:.") for word in words if re.match(r"--[a-z]", word)}
    assert sorted(named - every_flag()) == []


@pytest.mark.parametrize("document", GUIDES)
def test_commands_can_be_parsed(document: str):
    """``fairseq-train`` in the guides, as far as it is written out: known flags, values of their kind."""
    from fairseq import options

    import efficient_systems  # noqa: F401
    from fairseq_efficient.compat import mistakes

    blocks = re.findall(r"```bash\n(.*?)```", read(document), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(line)
        if not words or words[0] != "fairseq-train" or "..." in words:
            continue
        place = words.index("--user-dir")
        del words[place : place + 2]
        with mock.patch.object(sys, "argv", ["tool"]), mock.patch.object(mistakes, "_on_cpu", lambda _: False):
            parser = options.get_training_parser()
            options.parse_args_and_arch(parser, words[1:])


# --- files and links -------------------------------------------------------------------------------------------------


def alternatives(path: str) -> list[str]:
    """``a{b,c}d`` -> ab d, ac d."""
    found = re.search(r"\{([^{}]*)\}", path)
    if found is None:
        return [path]
    return [one for part in found[1].split(",") for one in alternatives(path.replace(found[0], part.strip(), 1))]


def is_ours(path: str) -> bool:
    """Whether a span looks like a file of the repository; words in capitals are to be chosen by the reader."""
    if not re.fullmatch(r"[\w./*{},-]+", path) or path.startswith(("/", "-", "runs/")) or "..." in path:
        return False
    chosen = [part for part in re.split(r"[/._{},]", path) if re.fullmatch(r"[A-Z]+", part)]
    if set(chosen) - {"README", "CHANGELOG", "CONTRIBUTING", "LICENSE"}:
        return False
    inside = path.startswith(("docs/", "fairseq_efficient/", "scripts/", "tests/"))
    return path.endswith(SUFFIXES) or (path.endswith((".json", "/")) and inside)


def exists(path: str, document: str) -> bool:
    """At the root, beside the document, in a package; a bare name anywhere in the repository."""
    places = [ROOT, (ROOT / document).parent, ROOT / "fairseq_efficient", *(ROOT / system for system in SYSTEMS)]
    if any(next(place.glob(path.rstrip("/")), None) for place in places):
        return True
    folders = [ROOT / name for name in (*SYSTEMS, "fairseq_efficient", "efficient_systems", "scripts", "tests", "docs")]
    return "/" not in path and any(next(folder.rglob(path), None) for folder in folders)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_exist(document: str):
    named = [path for span in spans(our_words(document)) for word in span.split() for path in alternatives(word)]
    assert [path for path in named if is_ours(path) and not exists(path, document)] == []


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_table_of_interfaces_is_right():
    """README's: of each system the class, the methods of its interface, and the entry of torch.hub."""
    hub = load_script(ROOT / "hubconf.py")
    rows = next(rows for titles, rows in tables(read("README.md")) if "gives" in titles)
    assert [package.strip("`") for package, *_ in rows] == list(SYSTEMS)
    for package, model, gives in rows:
        module, _, name = model.strip("`").rpartition(".")
        kind = getattr(importlib.import_module(f"{package.strip('`')}.{module}"), name)
        assert callable(kind.from_pretrained)
        assert all(method in getattr(hub, package.strip("`")).__doc__ for method in re.findall(r"`(\.\w+)\(", gives))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(document))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_measured_numbers_are_those_of_the_files():
    """The table of docs/performance.md, and each row that its text names."""
    measured = {}
    for path in sorted((ROOT / "docs/results").glob("bench_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            measured[row["name"]] = row
    text = read("docs/performance.md")
    rows = next(rows for titles, rows in tables(text) if titles == ["row", "times faster", "bound"])
    assert len(rows) > 5
    for name, ratio, bound in rows:
        found = measured[name.strip("`")]
        expected = [f"{found['ratio']:.3g}", "-" if found["bound"] is None else f"{found['bound']:.3g}"]
        assert [ratio, bound] == expected, f"{name}: write {' | '.join(expected)}"
    assert {span for span in spans(text) if "/vs_" in span} <= set(measured)


# --- the tests themselves --------------------------------------------------------------------------------------------


def test_mistakes_are_seen():
    assert unknown("--fixed-sf 2 --fixed-sv", "dynamic_pooling") == ["--fixed-sv"]
    assert unknown("prepare_lm.py --clean --cleaner", "dynamic_pooling") == ["--cleaner"]
    assert unknown("fairseq-eval-lm --context-window --beam-me", "dynamic_pooling") == ["--beam-me"]
    assert alternatives("a/{b,c}.py") == ["a/b.py", "a/c.py"]
    assert is_ours("fairseq_efficient/ops/nothing.py") and not exists("fairseq_efficient/ops/nothing.py", "README.md")
    assert not is_ours("fairseq_efficient/ops/OP/fast.py") and not is_ours("runs/x.py")
    assert exists("text/binarize.py", "docs/architecture.md") and exists("pyramid.py", "deep_pyramidion/README.md")
    assert anchors("# A `b`, c\n## D e\n") == {"a-b-c", "d-e"}
    assert list(tables("| a | b |\n|---|---|\n| `x` | |\n")) == [(["a", "b"], [["`x`", ""]])]


@pytest.mark.parametrize(
    ("system", "flags"),
    [
        ("deep_pyramidion", ("--encoder-pooling",)),
        ("dynamic_pooling", ("--boundaries-type",)),
        ("skimming", ("--skim-inference", "--skim-lambda")),
        ("par_search", ("--decoder-blocks", "--arch-warmup-updates")),
        ("adaptive_span", ("--attn-span", "--eval-mem-len")),
    ],
)
def test_help_lists_the_flags_of_what_stands_beside_it(system: str, flags: tuple[str, ...]):
    """As the READMEs say; stock shows its help before it knows of any model."""
    (command,) = re.findall(r"`fairseq-train (.*--help)`", (ROOT / system / "README.md").read_text())
    status, output = run_here("train", shlex.split(command.replace("--user-dir ", f"--user-dir {ROOT}/")))
    assert status == 0 and "usage: train" in output and all(flag in output for flag in flags)
