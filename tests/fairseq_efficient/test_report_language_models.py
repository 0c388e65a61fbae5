"""Parts of a report on language models: logs and their times, curves, text in segments; self-contained and escaped."""

import re
from pathlib import Path

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.report import eval_log, figures, language_models, page, parts, segments, stages, train_log

EVIL = '<script>alert("1")</script> & </style>'


def log(bits: float, factor: float = 4.0, rate: float = 0.25, **more: float) -> train_log.TrainLog:
    """Ten logged points and ten validations of a run that falls to ``bits``; ``more``: other validated numbers."""
    found = train_log.TrainLog()
    for update in range(10, 101, 10):
        now = {"bpc": bits + 30 / update, "boundary_rate": rate, "shortening_factor": factor, "train_wall": 60.0}
        found.entries.setdefault("train_inner", {})[update] = {**now, "wpb": 512.0, "wps": 85.0}
        found.entries.setdefault("valid", {})[update] = {**now, **more}
    return found


AGREE = {f"{what}_{share}": 0.5 for what in ("spaces", "unigram") for share in ("precision", "recall")}
GUMBEL = {"sampled_shortening_factor": 4.5, "boundary_prob": 0.2, **AGREE}


def models() -> list[language_models.LanguageModel]:
    evaluation = eval_log.Evaluation(2.5, 1234, 3.0)
    timed = [stages.Stage("train", 60, 512)]
    found = [
        language_models.LanguageModel("vanilla", train_log.TrainLog(), "none", "5", 1000, evaluation),
        language_models.LanguageModel(EVIL, log(2.0, **AGREE), "fixed 4", "1-3-1", 1100, stages=timed),
        language_models.LanguageModel("gumbel", log(2.1, 9000.0, 0.0, **GUMBEL), "gumbel", "1-3-1", 1200),
    ]
    assert found[0].log is not None
    found[0].log.entries = {tag: dict(entries) for tag, entries in log(2.2).entries.items()}
    for entries in found[0].log.entries.values():
        for update, values in entries.items():
            entries[update] = {k: v for k, v in values.items() if "bound" not in k and "short" not in k}
    return found


def html(found: list[language_models.LanguageModel]) -> str:
    cut = [segments.Segmentation(m.name, ["a ", f"{EVIL}\n", "b"], [2, 30, 1], i) for i, m in enumerate(found)]
    sections = [
        language_models.results_section(found),
        language_models.bits_section(found),
        language_models.boundaries_section(found),
        language_models.agreement_section(found),
        segments.text_section(cut, EVIL, [EVIL]),
        segments.lengths_section(cut, 33),
        language_models.stages_section(found),
    ]
    return page.render(parts.Page(EVIL, EVIL, [section for section in sections if section]))


@pytest.mark.parametrize("several", [True, False])
def test_sections_are_self_contained_and_escaped(several: bool):
    text = html(models() if several else models()[2:])
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    figures_found = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(figures_found) == 5
    assert all("#0a0" not in svg and "aria-label=" in svg for svg in figures_found)
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert used <= set(re.findall(r"(--[\w-]+):", text))
    assert text.count("no boundary is more likely than not") == 1 and "have 4.5 characters" in text
    assert "↵\n" in text and "Share of segments by length" in text


def test_the_table_has_what_is_known():
    table = language_models.results_section(models()).parts[-1]
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert rows["vanilla"] == {
        "": "vanilla", "boundaries": "none", "layers": "5", "parameters": "1,000", "updates": "100",
        "valid bits": "2.500", "test bits": "2.5000", "shortening": "", "s / update": "6.024", "training": "10 min",
        "memory": "",
    }  # fmt: skip
    assert rows[EVIL]["shortening"] == "4.00" and rows[EVIL]["memory"] == "512 MB" and rows[EVIL]["test bits"] == ""
    assert rows["gumbel"]["shortening"] == "none (4.50)"
    assert table.strong == 1  # 2.0 + 0.3 in validation is the least
    alone = language_models.results_section(models()[1:2]).parts
    labels = [label for label, _, _ in alone[0].tiles]
    assert labels == ["bits per character", "characters a segment", "an update", "memory"]


def test_a_run_without_a_log_has_no_curves():
    bare = [language_models.LanguageModel("x", evaluation=eval_log.Evaluation(1.0, 2, 3.0))]
    for section in ("bits_section", "boundaries_section", "agreement_section", "stages_section"):
        assert getattr(language_models, section)(bare) is None
    assert "1.000" in html(bare)


def test_an_axis_is_cut_where_the_first_fall_would_flatten_the_rest():
    falling = figures.Line("a", list(range(0, 101, 10)), [9.0, *[2.0 - i / 100 for i in range(10)]])
    assert language_models.settled([falling]) == pytest.approx(2.009)
    assert language_models.settled([figures.Line("flat", [1, 2], [2.0, 2.0])]) is None
    assert language_models.settled([]) is None


def test_seconds_of_an_update():
    assert train_log.interval_seconds({"train_wall": "3", "wpb": "500", "wps": "1500"}, 10) == pytest.approx(1 / 3)
    assert train_log.interval_seconds({"train_wall": "3", "wpb": "500", "wps": "50"}, 10) == 0.3  # it held a validation
    assert train_log.interval_seconds({"train_wall": "3"}, 10) == 0.3
    assert train_log.interval_seconds({"wpb": "500", "wps": "1500"}, 10) is None
    found = log(2.0)
    assert found.step_seconds() == pytest.approx(512 / 85) and found.seconds()[1][-1] == pytest.approx(100 * 512 / 85)
    assert train_log.TrainLog().step_seconds() is None


def test_the_last_evaluation_of_a_log(tmp_path: Path):
    path = tmp_path / "eval.log"
    path.write_text("x | Evaluated 1 tokens in 9s\nLoss (base 2): 9.0\nEvaluated 1,234 tokens in 2.5s (1 tokens/s)\n"
                    "INFO | Loss (base 2): 2.3456, Perplexity: 5\n")  # fmt: skip
    assert eval_log.read_evaluation(path) == eval_log.Evaluation(2.3456, 1234, 2.5)
    path.write_text("Evaluated 1,234 tokens in 2.5s\n")
    with pytest.raises(UserError, match=r"eval\.log: no result"):
        eval_log.read_evaluation(path)
    with pytest.raises(UserError, match=r"gone\.log: No such file"):
        eval_log.read_evaluation(tmp_path / "gone.log")


def test_shares_of_lengths():
    assert segments.shares([1, 1, 2, 9], 3) == [0.5, 0.25, 0.25]
    assert segments.shares([], 2) == [0, 0]
    empty = segments.lengths_section([segments.Segmentation("a", ["x"], [])], 1)
    assert isinstance(empty.parts[0], parts.Text)


def test_validations_between_two_lines_of_the_log_have_a_time():
    found = log(2.0)
    found.entries["valid"] = {15: {"bpc": 3.0}, 95: {"bpc": 2.5}}
    model = language_models.LanguageModel("m", found, "none", "5", 1000)
    minutes, bits = language_models._bits_by_minute(model, False)
    assert bits == [3.0, 2.5] and minutes == pytest.approx([1.5, 9.5], abs=0.05)
    model = language_models.LanguageModel("m", train_log.TrainLog(), "none", "5", 1000)
    assert language_models._bits_by_minute(model, False) == ([], [])
