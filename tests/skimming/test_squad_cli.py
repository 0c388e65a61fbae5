"""The commands of SQuAD that users type: train, validate, predict; two ranks, mistakes."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from fairseq.data import Dictionary

from fairseq_efficient.errors import UserError
from tests.skimming.helpers import config
from tests.skimming.squad_tasks import criterion_of, task_of
from tests.squad_data import prepared, question, squad
from tests.util import ROOT, Command, error_line, free_port, run_cli, run_in_process

MODEL = ["--arch", "skim_roberta"] + [
    part
    for name in ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads")
    for part in (f"--{name.replace('_', '-')}", str(getattr(config(), name)))
]


def train_args(data: Path, save_dir: Path, *more: str) -> list[str]:
    return [
        str(data), "--user-dir", str(ROOT / "skimming"), "--task", "skim_squad", "--criterion",
        "skim_question_answering", *MODEL, "--max-seq-length", "24", "--doc-stride", "4", "--max-query-length", "6",
        "--cpu", "--optimizer", "adam", "--dropout", "0", "--attention-dropout", "0", "--lr", "0.01",
        "--batch-size", "8", "--num-workers", "0", "--save-dir", str(save_dir), "--seed", "1", "--log-format", "json",
        "--no-epoch-checkpoints", *more,
    ]  # fmt: skip


def valid_numbers(log: str) -> dict[str, str]:
    lines = [line for line in log.splitlines() if '"valid_loss"' in line or '"valid_f1"' in line]
    return json.loads(lines[-1][lines[-1].index("{") :])


@pytest.fixture(scope="module")
def trained(squad_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("trained")
    more = ["--max-epoch", "2", "--best-checkpoint-metric", "f1", "--maximize-best-checkpoint-metric"]
    log = run_in_process(
        "train", train_args(squad_data, folder, *more, "--squad-best-threshold", "--skim-init-bias", "0.5")
    )
    return folder / "checkpoint_last.pt", valid_numbers(log)


def test_train_validate_and_predict_agree(
    squad_data: Path, trained: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    path, numbers = trained
    assert float(numbers["valid_keep_ratio"]) < 1.0
    for mode in ("masked", "packed"):
        log = run_in_process(
            "validate",
            [str(squad_data), "--user-dir", str(ROOT / "skimming"), "--path", str(path), "--task", "skim_squad",
             "--cpu", "--batch-size", "3", "--log-format", "json", "--model-overrides", str({"skim_inference": mode})],
        )  # fmt: skip
        line = next(line for line in log.splitlines() if '"valid_f1"' in line or '"f1"' in line)
        found = {key.removeprefix("valid_"): value for key, value in json.loads(line[line.index("{") :]).items()}
        for name in ("exact", "f1", "NoAns", "HasAns_f1", "best_f1"):
            assert float(found[name]) == pytest.approx(float(numbers[f"valid_{name}"]), abs=0.011), (mode, name)
    out = run_cli(
        str(ROOT / "scripts" / "squad_predict.py"), [str(path), "--output", str(tmp_path / "out"), "--max-tokens", "99"]
    )
    official = json.loads(out[out.index("{") : out.rindex("}") + 1])
    for name in ("exact", "f1", "HasAns_exact"):
        assert official[name] == pytest.approx(float(numbers[f"valid_{name}"]), abs=0.011)
    assert official["total"] == 14 and official["best_f1"] >= float(numbers["valid_best_f1"]) - 0.011
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    best = json.loads((tmp_path / "out" / "nbest.json").read_text())
    odds = json.loads((tmp_path / "out" / "null_odds.json").read_text())
    assert len(predictions) == len(best) == len(odds) == 14
    for name, answers in best.items():
        assert sum(one["probability"] for one in answers) == pytest.approx(1.0, abs=1e-3) and len(answers) <= 21
        top = next((one["text"] for one in answers if one["text"]), "")
        assert predictions[name] == ("" if odds[name] > 0 else top)
    again = run_cli(
        str(ROOT / "scripts" / "squad_predict.py"), [str(path), "--output", str(tmp_path / "out")], expect=2
    )
    assert "exists" in error_line(again)


def test_two_ranks_count_every_question_once(
    squad_data: Path, trained: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    path, numbers = trained
    world = ["--distributed-world-size", "2", "--distributed-init-method", f"tcp://127.0.0.1:{free_port()}"]
    world += ["--distributed-backend", "gloo", "--distributed-no-spawn", "--ddp-backend", "legacy_ddp"]
    args = train_args(
        squad_data, tmp_path, "--restore-file", str(path), "--max-epoch", "1", "--lr", "0", "--reset-dataloader"
    )
    args += ["--reset-optimizer", "--reset-meters", "--squad-best-threshold", "--skim-init-bias", "0.5"]
    args += ["--batch-size-valid", "5"]  # three batches: the second rank's last one is a dummy
    ranks = [Command("train", [*args, *world, "--distributed-rank", str(rank)]) for rank in range(2)]
    logs = [rank.wait(timeout=300) for rank in ranks]
    found = valid_numbers(logs[0])
    for name in ("exact", "f1", "HasAns_exact", "best_exact"):
        assert float(found[f"valid_{name}"]) == pytest.approx(float(numbers[f"valid_{name}"]), abs=0.011)


@pytest.mark.full
def test_it_learns(tmp_path: Path) -> None:
    """The answer is the word after "x"; a paragraph without one has none. A tiny model gets nearly all of it."""
    draw = random.Random(1)
    paragraphs = []
    for number in range(432):
        words = draw.choices(["good", "bad", "film", "the", "is", "was"], k=8)
        answer = number % 3 != 0
        if answer:
            words[draw.randrange(6)] = "x"
        at = words.index("x") + 1 if answer else 0
        start = len(" ".join(words[:at])) + 1 if at else 0
        one = question(str(number), "x?", *([(words[at], start)] if answer else []), impossible=not answer)
        paragraphs.append((" ".join(words), [one]))
    folder = prepared(tmp_path, train=squad(*paragraphs[:400]), valid=squad(*paragraphs[400:]))
    more = ["--max-epoch", "12", "--skim-lambda", "0.05", "--best-checkpoint-metric", "f1", "--validate-interval", "12"]
    log = run_in_process(
        "train",
        train_args(
            folder, tmp_path / "ck", *more, "--maximize-best-checkpoint-metric", "--lr", "0.003", "--batch-size", "16"
        ),
    )
    numbers = valid_numbers(log)
    assert float(numbers["valid_f1"]) > 85, numbers


def test_mistakes(squad_data: Path, tmp_path: Path) -> None:
    for flags, why in (
        ({"max_seq_length": 7}, "--max-seq-length 7: must be at least 8"),
        ({"doc_stride": -1}, "--doc-stride -1: must be at least 0"),
        ({"data": str(tmp_path)}, "dict.txt: no such file; prepare with"),
    ):
        with pytest.raises(UserError, match=why):
            task_of(squad_data, **flags)
    with pytest.raises(UserError, match="--doc-stride 20: windows of --max-seq-length 24 leave only"):
        task_of(squad_data, doc_stride=20).load_dataset("train")
    with pytest.raises(UserError, match=r"nothing\.idx: no such file"):
        task_of(squad_data).load_dataset("nothing")
    task = task_of(squad_data)
    for flags, why in (
        ({"n_best_size": 0}, "--n-best-size 0: must be at least 1"),
        ({"max_answer_length": 0}, "--max-answer-length 0"),
    ):
        with pytest.raises(UserError, match=why):
            criterion_of(task, **flags)
    with pytest.raises(UserError, match="needs --task skim_squad"):
        criterion_of(SimpleNamespace(target_dictionary=Dictionary()))  # type: ignore[arg-type]
    stock = train_args(squad_data, tmp_path)
    stock[stock.index("skim_roberta")] = "roberta_base"
    out = error_line(run_cli("train", stock, expect=2))
    assert "task skim_squad needs a skim_roberta model" in out
    out = error_line(run_cli("train", [*train_args(squad_data, tmp_path), "--max-positions", "20"], expect=2))
    assert "--max-seq-length 24: the model reads 20 tokens" in out
    broken = tmp_path / "broken"
    shutil.copytree(squad_data, broken)
    (broken / "label" / "train.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="do not belong together"):
        task_of(broken).load_dataset("train")
