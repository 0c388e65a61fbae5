"""The page: self-contained, escaped; the logs it reads: broken lines and all; the stages it times."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.report import figures, kept, page, parts, stages, summaries, train_log
from tests.util import ROOT

EVIL = "<script>alert(1)</script> & \"quotes\" 'and' </style><img src=x onerror=alert(2)>"
LOG = [
    '{"epoch": 1, "update": 0.5, "loss": "12.5", "nll_loss": "12.0", "num_updates": "10", "lr": "0.1"}',
    "2026-01-01 00:00:00 | INFO | fairseq_cli.train | {'_name': None}",
    '{"epoch": 1, "update": 0.9, "loss": "11.5", "nll_lo',
    '2026-01-01 00:00:00 | INFO | train_inner | {"epoch": 1, "loss": "11.5", "nll_loss": "11.0", "num_updates": "20"}',
    '{"epoch": 1, "train_loss": "12.0", "train_nll_loss": "11.5", "train_num_updates": "20"}',
    '{"epoch": 1, "valid_loss": "11", "valid_rouge1": 14.5, "valid_rouge_n": 8, "valid_num_updates": "20"}',
    '{"epoch": 1, "dev-0_loss": "9", "dev-0_num_updates": "20"}',
    '{"epoch": 2, "loss": "10.5", "nll_loss": "10.0", "num_updates": "20"}',
    '{"epoch": 2, "loss": "nan", "nll_loss": "nan", "num_updates": "30"}',
    '{"some": "other json"}',
    '{"loss": "1", "num_updates": NaN}',
]


class Outside(HTMLParser):
    """Collects what a browser would fetch, and the tags."""

    def __init__(self, html: str):
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            address = name in ("src", "href", "xlink:href", "srcset", "data", "action") and not value.startswith("#")
            if address or tag in ("link", "iframe", "object", "embed", "base") or (tag, name) == ("img", "src"):
                self.fetched.append(f"{tag} {name}={value}")


def scores() -> dict:
    numbers = {kind: {"mean": 10.0 + i, "low": 9.0, "high": 15.0} for i, kind in enumerate(summaries.KINDS)}
    model = {**numbers, "pairs": 3, "empty": 0, "words": 20.0, "reference_words": 30.0}
    return {"model": model, "lead": {**model, "rouge1": {"mean": 30.0, "low": 29.0, "high": 31.0}}}


def selection() -> kept.Selection:
    pieces = ["▁a", "b", "▁c", "▁d", EVIL, "▁f"]
    return kept.Selection(pieces, [[0, 1, 2, 4], [1, 4]], [[0.5, 0.6, 0.7, 0.8], [0.9, float("nan")]])


def full_page() -> str:
    split = summaries.Split([EVIL, "b"], [EVIL, "c"], [EVIL, "d. e."])
    drawn = kept.document_part(selection(), ["layer 0", EVIL], EVIL, EVIL)
    sections = [
        summaries.score_section(scores(), 180, 20),
        summaries.curves_section(train_log.parse(LOG)),
        kept.kept_section([selection()], ["layer 0", EVIL], drawn, "What is kept"),
        summaries.samples_section(split, [0, 1], EVIL),
        summaries.stages_section([stages.Stage(EVIL, 75, 100, command=EVIL)]),
        parts.Section("Parts", [parts.Text(EVIL), parts.Code(EVIL, EVIL)], EVIL),
    ]
    return page.render(parts.Page(EVIL, EVIL, sections, [("commit", EVIL)]))


def test_the_page_fetches_nothing_and_text_stays_text():
    html = full_page()
    found = Outside(html)
    assert found.fetched == []
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", html)
    assert found.tags.count("script") == 1 and "img" not in found.tags
    assert "<script>alert" not in html and "onerror=alert(2)>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_figures_take_their_colours_from_the_page():
    html = full_page()
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert "var(--" in svg and "#0a0" not in svg and "<metadata" not in svg and "aria-label=" in svg
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    assert used <= set(re.findall(r"(--[\w-]+):", html))
    assert figures.step_color(1, 1) == figures.step_color(4, 4) != figures.step_color(1, 4)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path):
    one = parts.Page("t", "s", [])
    page.write(one, tmp_path / "deep" / "page.html")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        page.write(one, tmp_path / "file" / "page.html")


def test_a_training_log_with_broken_and_repeated_lines():
    log = train_log.parse(LOG)
    assert log.series("train_inner", "nll_loss") == ([10, 20], [12.0, 10.0])  # the later line of an update; no nan
    assert log.series("valid", "rouge1") == ([20], [14.5]) and log.series("train", "loss") == ([20], [12.0])
    assert sorted(log.valid_sets) == ["dev-0", "valid"] and log.updates == 30 and log.broken == 1
    assert log.series("no", "such") == ([], [])


def test_a_log_without_numbers_is_named(tmp_path: Path):
    (tmp_path / "train.log").write_bytes(b"hello\n\xff\xfe\n")
    for name, message in (("train.log", "no training numbers"), ("missing.log", "missing.log: No such file")):
        with pytest.raises(UserError, match=message):
            train_log.read_train_log(tmp_path / name)


def test_tokens_become_runs_by_level():
    one = selection()
    assert kept.levels(one) == [1, 2, 1, 0, 2, 0]
    drawn = kept.document_part(one, ["first", "second"], "name")
    assert [(run.text, run.level, run.space) for run in drawn.runs[:4]] == [
        ("a", 1, True), ("b", 2, False), ("c", 1, True), ("d", 0, True)
    ]  # fmt: skip
    assert drawn.runs[1].hint == "token 1, score 0.900" and drawn.runs[4].hint == "token 4"
    assert drawn.counts == [6, 4, 2]
    same = parts.kept_document("n", ["▁a", "b", "▁c"], [0, 0, 0], [""] * 3, ["x"])
    assert [run.text for run in same.runs] == ["ab c"]


def test_shares_by_place_add_up():
    shares, even = kept.shares_by_place([selection(), selection()], places=3)
    assert shares == [[1.0, 0.5, 0.5], [0.5, 0.0, 0.5]]
    assert even == pytest.approx([4 / 6, 2 / 6])


def test_scores_from_a_file_and_from_a_log(tmp_path: Path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(scores()))
    assert summaries.read_scores(path) == scores()
    for bad in ("", "[]", "{}", '{"model": {"pairs": 1}}', '{"model": 3}'):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"scores\.json"):
            summaries.read_scores(path)
    split = summaries.Split(["the cat sat on the mat"], ["the cat sat"], ["The cat sat. The dog ran."])
    found = summaries.score_split(split)
    assert list(found) == ["model", "lead", "oracle"] and found["model"]["rouge1"]["mean"] == pytest.approx(200 / 3)


def test_the_verdict_says_which_is_better():
    def verdict(model: float) -> str:
        one = scores()
        one["model"]["rouge1"] = {"mean": model, "low": model, "high": model}
        return " ".join(p.text for p in summaries.score_section(one, 180, 20).parts if isinstance(p, parts.Text))

    assert "20.0 ROUGE-1 points below" in verdict(10.0) and "180" in verdict(10.0)
    assert "5.0 ROUGE-1 points above" in verdict(35.0) and "180" not in verdict(35.0)


def test_a_stage_is_timed_and_its_parts_add_up(tmp_path: Path):
    file = tmp_path / "stages.json"
    code = "import time, sys; x = bytearray(60 * 2**20); time.sleep(0.2); sys.exit({})"
    assert stages.run_stage(file, "train", [sys.executable, "-c", code.format(3)]) == 3
    assert stages.run_stage(file, "train", [sys.executable, "-c", code.format(0)]) == 0
    assert stages.run_stage(file, "other", [sys.executable, "-c", "pass"]) == 0
    one, other = stages.read_stages(file)
    assert (one.name, one.runs, one.done, other.runs) == ("train", 2, True, 1)
    assert one.seconds >= 0.4 and one.peak_mb > 60  # at least: a child starts with its parent's size, here pytest's
    command = [sys.executable, "-m", "fairseq_efficient.report.stages", "--file", str(file), "--name", "module", "--"]
    done = subprocess.run([*command, sys.executable, "-c", code.format(5)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 5 and 60 < stages.read_stages(file)[-1].peak_mb < 300
    stages.record(file, stages.Stage("train", 1.0, 2.0))  # begun anew after it was done
    assert stages.read_stages(file)[0] == stages.Stage("train", 1.0, 2.0)
    stages.record(file, stages.Stage("train", 2.0, 1.0), add=True)  # went on after it was done
    assert stages.read_stages(file)[0] == stages.Stage("train", 3.0, 2.0, runs=2)
    with pytest.raises(UserError, match="no-such-command"):
        stages.run_stage(file, "x", ["no-such-command"])
    for bad in ("", "{}", '[{"seconds": 1}]', '[{"name": "a", "seconds": "x", "peak_mb": 1}]'):
        file.write_text(bad)
        with pytest.raises(UserError, match=r"stages\.json: not a list"):
            stages.read_stages(file)


def test_fairseqs_output_in_short():
    show = stages.Readable(updates=40)
    prefix = "2026-01-01 00:00:00 | "
    lines = [
        (prefix + "INFO | fairseq_cli.train | {'_name': None, 'common': {}}", None),
        (prefix + "INFO | fairseq_cli.train | PyramidionModel(", None),
        ("  (encoder): PyramidionEncoder(", None),
        (")", None),
        (prefix + "INFO | train_inner | " + LOG[0], "update 10 of 40: loss 12.00"),
        (prefix + "INFO | train | " + LOG[4], None),
        (prefix + "INFO | valid | " + LOG[5], "update 20: valid: loss 11.00, rouge1 14.50"),
        (prefix + "INFO | fairseq_efficient.x | 3 sources cut", "3 sources cut"),
        (prefix + "INFO | adaptive_span.model | 3 spans", "3 spans"),
        (prefix + "WARNING | fairseq.trainer | careful", "warning: careful"),
        ("INFO:fairseq_cli.generate:NOTE: hypothesis", None),
        ("INFO:valid:" + LOG[5], "update 20: valid: loss 11.00, rouge1 14.50"),
        ("INFO:fairseq_cli.generate:Translated 3 sentences", "Translated 3 sentences"),
        ("INFO:fairseq.logging.progress_bar::      2 / 40 wps=167", "batch 2 of 40"),
        (prefix + "INFO | fairseq.logging.progress_bar | :      3 / 40 wps=167", None),
        (prefix + "INFO | fairseq.logging.progress_bar | :     40 / 40 wps=167", "batch 40 of 40"),
        ("error: --flag: no", "error: --flag: no"),
        ("Traceback (most recent call last):", "Traceback (most recent call last):"),
    ]
    for line, expected in lines:
        assert show(line) == expected, line


def test_durations():
    found = [stages.duration(seconds) for seconds in (0.4, 59.6, 75, 120, 3725)]
    assert found == ["0 s", "60 s", "75 s", "2 min", "62 min"]
