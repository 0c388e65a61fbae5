"""scripts/export_model.py for every system, and what takes its folders: fairseq's tools, from_pretrained, torch.hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from tests.scripts.test_prepare_summarization import prepare, rows, write_jsonl
from tests.util import ROOT, SYSTEMS, System, error_line, run_cli, run_in_process, train_args

EXPORT = str(ROOT / "scripts" / "export_model.py")
ONE_EACH = list({system.user_dir: system for system in reversed(SYSTEMS)}.values())


@pytest.fixture(scope="module", params=ONE_EACH, ids=lambda one: one.user_dir)
def exported(
    request: pytest.FixtureRequest, datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[System, Path, Path, Path]:
    """A system, its data, the checkpoint of a short training, and the folder that was made of it."""
    system, folder = request.param, tmp_path_factory.mktemp(request.param.user_dir)
    data = datasets[system.data]
    run_in_process("train", [*train_args(data, folder, system), "--max-update", "2", "--disable-validation"])
    checkpoint, out = folder / "checkpoint_last.pt", folder / "given"
    card = ["--title", "A tiny one", "--trained-on", "made-up words", "--license", "none", "--result", "loss=3.2"]
    said = run_cli(EXPORT, [str(checkpoint), str(out), *card])
    assert f"{out}: " in said and " parameters, " in said
    return system, data, checkpoint, out


def validated(data: Path, system: System, path: Path) -> str:
    """The line of losses that fairseq-validate prints."""
    task = read_checkpoint(str(path))["cfg"]["task"]["_name"]
    flags = [
        "--user-dir",
        str(ROOT / system.user_dir),
        "--task",
        task,
        "--path",
        str(path),
        "--cpu",
        "--batch-size",
        "4",
    ]
    flags += ["--num-workers", "0", "--log-format", "json"]
    if system.data == "pairs":
        flags += ["--source-lang", "src", "--target-lang", "tgt"]
    output = run_in_process("validate", [str(data), *flags])
    line = next(line for line in output.splitlines() if '"valid_loss"' in line)
    found: dict[str, Any] = json.loads(line[line.index("{") :])
    return json.dumps({key: value for key, value in found.items() if key.endswith(("loss", "ppl"))})


def test_fairseq_reads_it_as_the_checkpoint(exported: tuple[System, Path, Path, Path]):
    system, data, checkpoint, out = exported
    assert validated(data, system, out / "model.safetensors") == validated(data, system, checkpoint)


def test_the_folder(exported: tuple[System, Path, Path, Path]):
    system, data, _, out = exported
    card = (out / "README.md").read_text()
    for part in ("# A tiny one", "made-up words", "| loss | 3.2 |", f"--user-dir {system.user_dir}", "from_pretrained"):
        assert part in card, part
    for path in out.rglob("*"):
        if path.is_file():
            assert str(data).encode() not in path.read_bytes(), path
    for line in card.splitlines():
        if line.startswith("from "):  # the import that the card tells
            kind = line.split()[-1]
            module = __import__(line.split()[1], fromlist=[kind])
            assert hasattr(getattr(module, kind), "from_pretrained")


def test_a_new_training_starts_from_it(exported: tuple[System, Path, Path, Path], tmp_path: Path):
    system, data, checkpoint, out = exported
    more = ["--finetune-from-model", str(out / "model.safetensors"), "--max-update", "2", "--lr", "0"]
    run_in_process("train", [*train_args(data, tmp_path, system), *more, "--disable-validation"])
    before, after = (read_checkpoint(str(path))["model"] for path in (checkpoint, tmp_path / "checkpoint_last.pt"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name


def test_torch_hub(exported: tuple[System, Path, Path, Path]):
    """These data have no texts (no prepare.json): symbols with spaces are what fairseq's interfaces take then."""
    system, _, _, out = exported
    if system.user_dir == "skimming":  # see tests/skimming/test_hub.py for one with a tokenizer
        with pytest.raises(UserError, match=r"no tokenizer\.json inside"):
            torch.hub.load(str(ROOT), system.user_dir, str(out), source="local")
        return
    model = torch.hub.load(str(ROOT), system.user_dir, str(out), source="local")
    if system.user_dir == "deep_pyramidion":
        assert len(model.summarize(["w1 w2 w3", "w4"], max_len_b=5)) == 2
    else:
        assert isinstance(model.generate("a b", length=4), str)
        assert len(model.score("a b")["tokens"]) == 2


def test_mistakes(exported: tuple[System, Path, Path, Path], tmp_path: Path):
    system, _, checkpoint, out = exported
    if system.user_dir != "par_search":
        pytest.skip("one system is enough")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(checkpoint.read_bytes()[:5000])
    for args, said in (
        ([checkpoint, out], "exists already (--overwrite"),
        ([checkpoint, other, "--overwrite"], "notes.txt in it was not made by this script"),
        ([checkpoint, tmp_path / "a", "--data", other], "no dictionary inside"),
        ([checkpoint, tmp_path / "a", "--result", "x"], "expected NAME=VALUE"),
        ([checkpoint, tmp_path / "a", "--result", "x=\udced"], "not valid Unicode"),
        ([damaged, tmp_path / "a"], "cannot be read"),
        ([tmp_path / "none.pt", tmp_path / "a"], "No such file"),
    ):
        assert said in error_line(run_cli(EXPORT, [str(one) for one in args], expect=2))
    assert not (tmp_path / "a").exists() and (other / "notes.txt").exists()
    run_cli(EXPORT, [str(checkpoint), str(out), "--overwrite", "--precision", "fp16"])


def test_summaries(tmp_path: Path):
    """From documents to a folder to summaries, in the documents' order, whatever they share a batch with."""
    write_jsonl(tmp_path / "train.jsonl", rows(40, 1))
    data = tmp_path / "data"
    prepare(data, "--split", f"train={tmp_path / 'train.jsonl'}", "--split", f"valid={tmp_path / 'train.jsonl'}")
    system = System("deep_pyramidion", "pyramidion_tiny", ())
    task = ["--task", "long_summarization", "--max-update", "4", "--disable-validation"]
    run_in_process("train", [*train_args(data, tmp_path / "run", system), *task])
    run_cli(EXPORT, [str(tmp_path / "run" / "checkpoint_last.pt"), str(tmp_path / "given")])
    shutil.rmtree(data)
    from deep_pyramidion.model import PyramidionModel

    model = PyramidionModel.from_pretrained(tmp_path / "given")
    documents = [row["document"] for row in rows(5, 7)]
    found = model.summarize(documents, max_len_b=12)
    assert len(found) == 5 and found == [model.summarize(one, max_len_b=12) for one in documents]
    assert model.decode(model.encode(documents[0])) == documents[0]
