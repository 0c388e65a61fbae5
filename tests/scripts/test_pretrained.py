"""The small pretrained models: their recipes made tiny, run from text to model card, shown, and typed at."""

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.errors import UserError
from tests.test_readmes import parse, write_documents
from tests.util import ROOT, run_cli

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "scripts" / "experiments"))
import try_pretrained as shown
from experiment_parts import runs as shared
from experiment_parts import stages as experiment_stages
from experiment_parts.par_search import stages as par_search_stages
from experiment_parts.pretrained import page, results, stages
from experiment_parts.pretrained import plan as plans
from experiment_parts.stages import StageFailed

import pretrained as script
from tests.scripts.stages_here import script_here, stages_here

SYSTEMS = list(plans.RECIPES)
_BLOCKS = ("--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2",
           "--tokens-per-sample", "16", "--batch-size", "4")  # fmt: skip
TINY: dict[str, tuple[str, ...]] = {  # flags that come last, and so win
    "deep_pyramidion": (
        "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24", "--encoder-attention-heads", "2",
        "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2",
        "--enc-layers-and-token-width", "0:16,1:8", "--encoder-layers", "2", "--chunk-size", "8", "--batch-size", "4",
    ),
    "dynamic_pooling": _BLOCKS,
    "skimming": (
        "--encoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24",
        "--encoder-attention-heads", "2", "--skim-predictor-dim", "8", "--batch-size", "4", "--max-positions", "64",
    ),
    "par_search": (*_BLOCKS, "--mem-len", "8"),
    "adaptive_span": (*_BLOCKS, "--decoder-layers", "2", "--attn-span", "32", "--adapt-span-ramp", "4"),
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents with summaries, lines, and labelled texts: train, valid and test of each."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(5)
    counts = {"train": 24, "valid": 6, "test": 6}
    write_documents(folder, counts)
    for split, count in counts.items():
        rows = ["text\tlabel"]
        for number in range(count):
            words = draw.choices(["free", "money", "click"] if number % 2 else ["patch", "tests", "compiler"], k=6)
            rows.append(f"{' '.join(words)}\t{('ham', 'spam')[number % 2]}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def tiny(recipe: plans.Recipe, texts: Path) -> plans.Recipe:
    """The recipe on texts made up here, of a size for tests."""
    name, *flags = recipe.prepare
    ending = {"prepare_summarization.py": "jsonl", "prepare_classification.py": "tsv"}.get(name, "txt")
    place = flags.index("--corpus")
    flags[place : place + 2] = [
        word for split in ("train", "valid", "test") for word in ("--split", f"{split}={texts / split}.{ending}")
    ]
    if "bytes" in flags:
        flags += ["--format", "text"]
    for flag, value in (("--vocab-size", "270" if ending == "tsv" else "90"), ("--max-tokens", "64")):
        if flag in flags:
            flags[flags.index(flag) + 1] = value
    small = [replace(one, updates=2, flags=(*one.flags, *TINY[recipe.system])) for one in recipe.trainings]
    search = recipe.search and replace(
        recipe.search,
        updates=8,
        flags=(*recipe.search.flags, *TINY[recipe.system], "--decoder-blocks", "3", "--arch-lr", "0"),  # all attention
    )
    return replace(recipe, prepare=(name, *flags), trainings=tuple(small), search=search)


def call(patch: pytest.MonkeyPatch, *flags: object) -> int:
    patch.setattr(sys, "argv", ["pretrained.py", *map(str, flags), "--valid-batches", "2", "--threads", "1"])
    return script.main()


class Maker:
    """Makes each system's tiny model once."""

    def __init__(self, patch: pytest.MonkeyPatch, texts: Path, out: Path):
        self.patch, self.out, self.done = patch, out, set[str]()
        self.ran = stages_here(patch, stages, shared, par_search_stages, experiment_stages)
        for system in SYSTEMS:
            patch.setitem(plans.RECIPES, system, tiny(plans.RECIPES[system], texts))

    def run(self, *flags: object) -> list[str]:
        """The tools that ran."""
        self.ran.clear()
        assert call(self.patch, *flags, "--out", self.out) == 0
        return list(self.ran)

    def model(self, system: str) -> Path:
        if system not in self.done:
            self.run(system)
            self.done.add(system)
        return self.models / system

    @property
    def models(self) -> Path:
        return self.out / "results" / "pretrained"


@pytest.fixture(scope="module")
def maker(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    with pytest.MonkeyPatch.context() as patch:
        yield Maker(patch, texts, tmp_path_factory.mktemp("out"))


# --- recipes ----------------------------------------------------------------------------------------------------------

FLOORS = {
    "deep_pyramidion": ("first sentence", "by hindsight"), "dynamic_pooling": ("xz -9e", "count model"),
    "skimming": ("always ham", "naive Bayes"), "par_search": ("without context", "count model of 1"),
    "adaptive_span": ("xz -9e", "count model"),
}  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS)
def test_from_text_to_card(maker: Maker, system: str, capsys: pytest.CaptureFixture):
    """Every stage once; a second start does nothing but look at the data and write the folder again."""
    folder = maker.model(system)
    title, rows = shown.read_card(folder)
    recipe = plans.RECIPES[system]
    assert title == recipe.title and rows["trained on"] == recipe.corpus.title
    assert recipe.corpus.license in rows["license"] and "MIT" in rows["license"]
    floors = [name for name in rows if name.startswith("floor: ")]
    assert all(any(words in name for name in floors) for words in FLOORS[system]), floors
    assert len(rows) - len(floors) >= 4  # trained on, license, task and what was measured
    document = json.loads((maker.out / "results" / "pretrained.json").read_text())
    model = document["models"][system]
    assert dict(map(tuple, model["results"])).items() <= rows.items()
    assert model["bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert model["parameters"] > 1000 and model["seconds"] >= 0 and model["made"]["command"]
    text = (maker.models / "README.md").read_text()
    assert f"| [{system}]({system}/README.md): {recipe.does} |" in text
    prepare = Path(recipe.prepare[0]).stem
    assert maker.run(system) == [prepare, "export_model"]
    said = capsys.readouterr().out
    assert "trained already" in said and "done already" in said


def test_what_ran(maker: Maker, tmp_path: Path):
    maker.out, before = tmp_path, maker.out
    try:
        ran = maker.run("skimming")
        once = [
            "prepare_classification",
            "floors",
            "train",
            "train",
            "export_model",
            "validate",
            "validate",
            "export_model",
        ]
        assert ran == once
        log = (tmp_path / "skimming" / "skimmed" / "train.log").read_text()
        assert "learning from" in log  # the dense model teaches
        with pytest.raises(UserError, match="was trained with other flags"):
            maker.run("skimming", "--updates", "3")
        assert maker.run("par_search", "--prepare-only") == ["prepare_lm"]
    finally:
        maker.out = before


def test_a_searched_layout_is_trained(maker: Maker):
    folder = maker.model("par_search")
    layout = json.loads((maker.out / "par_search" / "search" / "seed1" / "layout.json").read_text())["layout"]
    assert "a" in layout and f"`{layout}`" in (folder / "README.md").read_text()
    trained = json.loads((maker.out / "par_search" / "model" / "stages.json").read_text())[0]
    assert trained["name"] == "train" and f"--layout {layout} " in trained["command"]


# --- shown and typed at -----------------------------------------------------------------------------------------------


def test_all_of_them_are_shown(maker: Maker):
    for system in SYSTEMS:
        maker.model(system)
    said = script_here(str(ROOT / "scripts" / "try_pretrained.py"), [maker.models])
    for system in SYSTEMS:
        assert f"{system}: {plans.RECIPES[system].title}\n" in said
        _, rows = shown.read_card(maker.model(system))
        assert all(f"  {name}: {value}\n" in said for name, value in rows.items() if name.startswith("floor: "))
    assert f"\n  {shown.WORDS}\n" in said.replace("|", "")  # the segments put together again
    assert said.count("of the tokens kept)") == 2 and said.count("bits per character") >= 2
    assert "not there" not in said


def test_what_is_not_there_is_told(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "skimming").symlink_to(maker.model("skimming"))
    said = script_here(str(ROOT / "scripts" / "try_pretrained.py"), [tmp_path, "--commands"])
    assert "not there: deep_pyramidion, dynamic_pooling, par_search, adaptive_span" in said
    assert "python scripts/classify.py pretrained/skimming/model.safetensors" in said
    bare = tmp_path / "bare" / "skimming"
    bare.mkdir(parents=True)
    (bare / "model.safetensors").touch()
    for place, why in (
        (tmp_path / "gone", "no such folder"), (maker.out, "no model inside"),
        (bare.parent, r"README\.md: No such file"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["try_pretrained.py", str(place)])
        with pytest.raises(UserError, match=why):
            shown.main()


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_command_of_each(maker: Maker, system: str):
    """As README has it, on the tiny model."""
    folder = maker.model(system)
    assert shown.COMMANDS[system] in (maker.models / "README.md").read_text()
    command = parse(shown.COMMANDS[system].replace("\\\n", " "))
    tool, *words = [word.replace(f"pretrained/{system}", str(folder)) for word in command.words]
    if tool == "python":
        tool = words.pop(0)
    output = run_cli(tool.removeprefix("fairseq-"), words, typed=command.typed, cwd=ROOT)
    if tool == "fairseq-interactive":
        assert re.search(r"^D-0\t", output, re.MULTILINE), output
    elif system == "skimming":
        assert re.match(r"(ham|spam)\t0\.\d+\t0\.\d+\n", output), output
    else:
        assert output.splitlines()[0].replace("|", "") == shown.WORDS


# --- what can go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["spans"], "spans: not one of deep_pyramidion"),
        (["skimming", "--updates", "0"], "--updates 0: must be at least 1"),
        (["skimming", "--publish", "--results", "x"], "give --results or --publish"),
    ],
)
def test_wrong_flags(flags: list[str], said: str):
    with pytest.raises(UserError, match=said):
        script.check(script.get_parser().parse_args([*flags, "--out", "x"]))


def test_too_large_models_are_refused():
    def models(*sizes: int) -> dict[str, Any]:
        return {"models": {str(number): {"bytes": size} for number, size in enumerate(sizes)}}

    results.check_sizes(models(8_000_000, 5_000_000, 5_000_000, 6_000_000, 6_000_000))
    with pytest.raises(StageFailed, match="1: 8,000,001 bytes, more than 8,000,000"):
        results.check_sizes(models(100, 8_000_001))
    with pytest.raises(StageFailed, match="all models: 31,000,000 bytes, more than 30,000,000"):
        results.check_sizes(models(7_000_000, 7_000_000, 7_000_000, 5_000_000, 5_000_000))


def test_what_is_published_is_what_was_measured(maker: Maker, tmp_path: Path):
    plan = plans.Plan.of(
        script.get_parser().parse_args(["skimming", "--out", str(maker.out)]), plans.RECIPES["skimming"]
    )
    maker.model("skimming")
    content = stages.content(plan.exported)
    stages.publish(plan, tmp_path / "model", [("accuracy", "1%")])
    assert stages.content(tmp_path / "model") == content
    other = bytearray((plan.exported / "model.safetensors").read_bytes())
    other[-1] ^= 1
    kept = (plan.exported / "model.safetensors").read_bytes()
    (plan.exported / "model.safetensors").write_bytes(other)
    with pytest.raises(StageFailed, match="is not the model that was measured"):
        stages.publish(plan, tmp_path / "model", [])
    (plan.exported / "model.safetensors").write_bytes(kept)


def test_a_search_without_attention_is_told(maker: Maker, monkeypatch: pytest.MonkeyPatch):
    maker.model("par_search")
    args = script.get_parser().parse_args(["par_search", "--out", str(maker.out)])
    plan = plans.Plan.of(args, plans.RECIPES["par_search"])
    monkeypatch.setattr(stages, "search_layout", lambda *_: None)
    monkeypatch.setattr(plans, "read_json", lambda _: {"with_identity": "ffi"})
    with pytest.raises(StageFailed, match="found 'ff', which never looks back"):
        stages.learn(plan)


# --- the models in the repository -------------------------------------------------------------------------------------

HERE = ROOT / "pretrained"
KNOWN = ROOT / "docs" / "results" / "pretrained.json"


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_models_that_are_here(system: str):
    """Size, card, and that they load and do what they are for."""
    folder = HERE / system
    if not folder.is_dir():
        pytest.skip(f"no pretrained/{system} here")
    title, rows = shown.read_card(folder)
    recipe = plans.RECIPES[system]
    assert title == recipe.title and rows["trained on"] == recipe.corpus.title
    assert recipe.corpus.license in rows["license"] and plans.LICENSE in rows["license"]
    floors = [name for name in rows if name.startswith("floor: ")]
    assert len(floors) >= 2 and len(rows) - len(floors) >= 4
    model = json.loads(KNOWN.read_text())["models"][system]
    assert dict(map(tuple, model["results"])).items() <= rows.items()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size == model["bytes"] <= plans.LIMIT
    assert all(given and found for given, found in shown.SHOW[system](folder))


def test_their_page_is_that_of_the_numbers():
    if not KNOWN.exists():
        pytest.skip("no docs/results/pretrained.json here")
    document = json.loads(KNOWN.read_text())
    assert (HERE / "README.md").read_text() == page.page(document)
    assert {path.name for path in HERE.iterdir() if path.is_dir()} == set(document["models"])
    results.check_sizes(document)
