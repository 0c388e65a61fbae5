"""Tokenizers of Hugging Face models (WordPiece, byte-level BPE, unigram) and the fairseq dictionary of each.

fairseq numbers ``<s> <pad> </s> <unk>`` first and puts ``<mask>`` last; all other tokens keep their order. So the
tokens ``[CLS] [PAD] [SEP] [UNK]`` of BERT get the rows 0 to 3, ``[MASK]`` the last one, and a vocabulary of N tokens
stays one of N. Ids that no token has, and tokens that fairseq could not read back, keep their row under another name.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.prepared import read_file
from fairseq_efficient.text.spm import read_dictionary
from fairseq_efficient.text.symbols import SPECIALS, UNK

MASK = "<mask>"
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "encoder.json")  # looked for in a folder, in this order
_MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
_BRACKETS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
_ANGLES = (*SPECIALS, MASK)
_PROBE = "a \u2603\U0010ffff 1"  # a word, what hardly any vocabulary has, a number
_UNNAMED = 10_000  # ids that no token has, as many as tokens and so many more: published ones have a few dozen
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")
_GLUED_LEFT, _GLUED_RIGHT = frozenset(".,!?;:%)]}"), frozenset("([{$#")
_AFTER_APOSTROPHE = frozenset(("s", "t", "m", "d", "re", "ve", "ll", "S", "T", "M", "D", "RE", "VE", "LL"))


class Subwords:
    """A tokenizer, the symbol of each of its ids, and the order in which fairseq numbers them.

    Text is text: ``[SEP]`` written in it is three pieces, never a separator.

    Args:
        tokenizer: of the ``tokenizers`` library.
        name: for messages.
        rows: rows of the embedding that belongs to it, if there are more than tokens.

    Raises:
        UserError: no token for a role that fairseq needs, or a token that would be another one's symbol.
    """

    def __init__(self, tokenizer: Any, name: str, rows: int | None = None) -> None:
        document = json.loads(tokenizer.to_str())
        self.kind = str(document["model"]["type"])  # WordPiece, BPE, Unigram ...
        self.name, self.document = name, document
        document.update(truncation=None, padding=None, post_processor=None)
        self.tokenizer = Tokenizer.from_str(json.dumps(document))
        self.tokenizer.encode_special_tokens = True
        if self.kind == "BPE":
            self.tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1
        if rows is not None and rows < size:
            raise UserError(f"{name}: has ids up to {size - 1:,}, more than the {rows:,} rows of the embedding")
        if rows is None and size > 2 * len(vocabulary) + _UNNAMED:
            raise UserError(f"{name}: has ids up to {size - 1:,} for {len(vocabulary):,} tokens")
        self.tokens: list[str | None] = [None] * (rows or size)
        for token, number in vocabulary.items():
            self.tokens[number] = token
        self.roles = self._roles(vocabulary)
        self.symbols = self._symbols()
        self._index = {symbol: number for number, symbol in enumerate(self.symbols)}

    def _roles(self, vocabulary: dict[str, int]) -> list[int | None]:
        """Ids of the tokens that are ``<s> <pad> </s> <unk> <mask>`` to fairseq; only the last may be missing."""
        first, second = (_BRACKETS, _ANGLES) if self.kind == "WordPiece" else (_ANGLES, _BRACKETS)
        names = max(first, second, key=lambda names: sum(name in vocabulary for name in names))
        found = [vocabulary.get(name) for name in names]
        if self.kind == "BPE" and not any(name in vocabulary for name in (*_BRACKETS, *_ANGLES)):
            return [None] * len(names)  # GPT-2's: the dictionary alone has them
        missing = [name for name, number in zip(names[:4], found[:4], strict=True) if number is None]
        if missing:
            raise UserError(f"{self.name}: has no token {missing[0]}, which fairseq needs")
        return found

    def _symbols(self) -> list[str]:
        """The symbol of each id: a special one of fairseq, the token, or a name for what fairseq cannot read."""
        special = {number: symbol for number, symbol in zip(self.roles, _ANGLES, strict=True) if number is not None}
        symbols: list[str] = []
        seen: dict[str, int] = {}
        for number, token in enumerate(self.tokens):
            symbol = special.get(number)
            if symbol is None:
                symbol = _BLANK.sub(lambda match: f"<0x{ord(match[0]):02X}>", token or "") or f"madeupword{number:05d}"
                if symbol in _ANGLES and None not in self.roles[:4]:
                    raise UserError(f"{self.name}: the token {symbol!r} (id {number}) is one of fairseq's own")
            if symbol in seen:
                raise UserError(f"{self.name}: ids {seen[symbol]} and {number} are both {symbol!r} in a dictionary")
            seen[symbol] = number
            symbols.append(symbol)
        return symbols

    # --- the dictionary ---------------------------------------------------------------------------------------------

    def rows(self) -> np.ndarray:
        """Ids in fairseq's order, int64 (N,): row ``i`` of a fairseq embedding is row ``rows()[i]`` of the model's.

        N is the number of ids, and one more, -1 at the end, if the tokenizer has no mask.
        """
        first, mask = [-1 if one is None else one for one in self.roles[:4]], self.roles[4]
        others = np.setdiff1d(np.arange(len(self.tokens)), [one for one in self.roles if one is not None])
        return np.concatenate([first, others, [-1 if mask is None else mask]]).astype(np.int64)

    def dictionary(self) -> list[str]:
        """Symbols of dict.txt in order: without fairseq's four and without the mask, which its tasks add at the end."""
        return [self.symbols[number] for number in self.rows()[4:-1]]

    def table(self, dictionary: Sequence[str], name: str) -> np.ndarray:
        """id -> index in a fairseq dictionary (whose own four come first), int64 (ids,).

        The dictionary's symbols are this tokenizer's, or its ids as numbers (the dictionaries of fairseq's own RoBERTa
        models). UserError, naming file ``name``, if dictionary and tokenizer are not of the same making.
        """
        index = {symbol: number for number, symbol in enumerate((*SPECIALS, *dictionary))}
        index.setdefault(MASK, len(index))
        spellings = (self.symbols, [str(number) for number in range(len(self.tokens))])
        wrong = [self._disagreement(spelling, index) for spelling in spellings]
        best = min((0, 1), key=lambda one: len(wrong[one][0]))
        missing, extra = wrong[best]
        if missing or extra:
            example = min(missing) if missing else min(extra)
            raise UserError(
                f"{name}: is not the dictionary of {self.name} ({len(missing):,} missing, {len(extra):,} unknown, as "
                f"{example!r})"
            )
        return np.array([index.get(symbol, UNK) for symbol in spellings[best]], dtype=np.int64)

    @staticmethod
    def _disagreement(spelling: list[str], index: dict[str, int]) -> tuple[set[str], set[str]]:
        ours, theirs = set(spelling) - {*_ANGLES}, set(index) - {*_ANGLES}
        fillers = {symbol for symbol in ours ^ theirs if symbol.startswith("madeupword")}
        return ours - theirs - fillers, theirs - ours - fillers

    def to_json(self) -> str:
        """As a tokenizer.json, which :func:`read_subwords` reads back. It adds no special tokens to a text."""
        return json.dumps(self.document, ensure_ascii=False)

    # --- text -------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[str]:
        """Symbols of a text."""
        return [self.symbols[number] for number in self.tokenizer.encode(text, add_special_tokens=False).ids]

    def encode_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """ids of each text, int64 (tokens,)."""
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int64) for one in found]

    def encode_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """ids, int64 (tokens,), of each text, and where in it they start and end, int64 (tokens, 2) in characters."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(one.ids, dtype=np.int64), np.array(one.offsets, dtype=np.int64).reshape(-1, 2)) for one in found
        ]

    def decode(self, symbols: Iterable[str]) -> str:
        """Text of symbols. What is not a symbol, and ``<unk>`` and ``<mask>``, stays as it is written.

        Byte-level BPE comes back as it was. WordPiece loses case and accents (of uncased models) and blanks: pieces
        are joined, and punctuation is set as English does, in a way that encodes into the same pieces again.
        """
        if self.kind == "WordPiece":
            return _join_wordpieces([self._token(symbol) for symbol in symbols])
        parts: list[str] = []
        known: list[str] = []
        for symbol in symbols:
            if symbol in self._index and symbol not in _ANGLES:
                known.append(self._token(symbol))
            else:
                parts += [self.tokenizer.decoder.decode(known), f" {symbol}"]
                known = []
        return "".join([*parts, self.tokenizer.decoder.decode(known)]).removeprefix(" " if parts else "")

    def _token(self, symbol: str) -> str:
        number = self._index.get(symbol)
        token = self.tokens[number] if number is not None and symbol not in _ANGLES else None
        return symbol if token is None else token

    def starts_word(self, symbol: str) -> bool:
        """Whether a symbol starts a word (for whole-word masking); special ones do."""
        if self.kind == "WordPiece":
            return not symbol.startswith("##")
        return symbol in _ANGLES or symbol.startswith(("\u0120", "\u2581"))  # the space of byte-level BPE, of unigram


def _join_wordpieces(tokens: Sequence[str]) -> str:
    text: list[str] = []
    glue = True
    for place, token in enumerate(tokens):
        if token.startswith("##") and len(token) > 2 and text:
            text.append(token[2:])
            glue = False
            continue
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        apostrophe = token == "'" and place > 0 and following in _AFTER_APOSTROPHE
        text.append(token if glue or apostrophe or token in _GLUED_LEFT else f" {token}")
        glue = apostrophe or token in _GLUED_RIGHT
    return "".join(text)


def train_subwords(texts: Iterable[str], types: int, cased: bool = False) -> Subwords:
    """Byte-level BPE of ``types`` tokens (fairseq's four and the mask included), or fewer if the texts have no more.

    Deterministic, which the library's trainer of WordPiece is not. UserError for fewer than all bytes need.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if types < len(alphabet) + len(_ANGLES):
        raise UserError(f"--vocab-size {types}: must be at least {len(alphabet) + len(_ANGLES)} (all bytes are in it)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = None if cased else normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=types, special_tokens=list(_ANGLES), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Subwords(tokenizer, f"--vocab-size {types}")


# --- reading -------------------------------------------------------------------------------------------------------


def find_tokenizer(path: Path) -> Path:
    """The tokenizer's file: ``path`` itself, or the one in a folder. UserError if there is none."""
    if not path.is_dir():
        return path
    for name in _FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: no tokenizer in this folder ({', '.join(_FILES)})")


def read_subwords(path: Path, cased: bool | None = None, rows: int | None = None) -> Subwords:
    """A tokenizer.json, a vocab.txt of WordPiece, a vocab.json or encoder.json with merges beside it, or their folder.

    Args:
        cased: of a vocab.txt, whether it keeps case. None: as the tokenizer_config.json beside it says, else by its
            tokens (an uncased vocabulary has no capitals).
        rows: see :class:`Subwords`.

    Raises:
        UserError: missing, damaged, or not such a file.
    """
    path = find_tokenizer(path)
    content = read_file(path)
    try:
        if path.suffix == ".txt":
            tokenizer = _wordpiece(path, content.decode("utf-8"), cased)
        elif path.name in _MERGES:
            tokenizer = _byte_bpe(path, json.loads(content))
        else:
            text = content.decode("utf-8")
            _check_ids(text, str(path))
            tokenizer = Tokenizer.from_str(text)
        tokenizer.encode(_PROBE)  # one that has no token for what it does not know says so now
    except UnicodeDecodeError as err:
        raise UserError(f"{path}: not UTF-8 (byte {err.start + 1})") from None
    except UserError:
        raise
    except BaseException as err:  # the library raises bare Exceptions, and panics that are none
        if not isinstance(err, Exception) and type(err).__name__ != "PanicException":
            raise
        why = " ".join(str(err).split())[:200]
        raise UserError(f"{path}: not a tokenizer that the tokenizers library reads ({why})") from None
    if cased is not None and path.suffix != ".txt":
        raise UserError(f"{path}: says itself whether it keeps case; only a vocab.txt can be told")
    return Subwords(tokenizer, str(path), rows)


def _check_ids(text: str, name: str) -> None:
    """UserError for ids that are far apart: the library makes a place for each number up to the largest."""
    document = json.loads(text)
    model = document.get("model") if isinstance(document, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = document.get("added_tokens") if isinstance(document, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [one.get("id") for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    largest = max((one for one in ids if isinstance(one, int)), default=0)
    size = max(len(ids), len(vocabulary) if isinstance(vocabulary, list) else 0)
    if largest > 2 * size + _UNNAMED:
        raise UserError(f"{name}: has ids up to {largest:,} for {size:,} tokens")


def _keeps_case(path: Path, tokens: Iterable[str]) -> bool:
    config = path.with_name("tokenizer_config.json")
    if config.is_file():
        said = json.loads(read_file(config))
        if isinstance(said, dict) and isinstance(said.get("do_lower_case"), bool):
            return not said["do_lower_case"]
    return any(token != token.lower() for token in tokens if not re.fullmatch(r"\[.+\]", token))


def _wordpiece(path: Path, text: str, cased: bool | None) -> Any:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    vocabulary = {token: number for number, token in enumerate(lines) if token}
    if not vocabulary or "[UNK]" not in vocabulary:
        raise UserError(f"{path}: not a WordPiece vocabulary, a token a line with [UNK] among them")
    keeps = _keeps_case(path, vocabulary) if cased is None else cased
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=not keeps
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer


def _byte_bpe(path: Path, vocabulary: dict[str, int]) -> Any:
    merges = path.with_name(_MERGES[path.name])
    lines = read_file(merges).decode("utf-8").splitlines()
    pairs = []
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#version"):
            first, _, second = line.partition(" ")
            if not second or " " in second:
                raise UserError(f"{merges}:{number}: not two tokens")
            pairs.append((first, second))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def dictionary_beside(path: Path, subwords: Subwords, given: Path | None = None) -> tuple[list[str], bytes | None]:
    """Symbols of the dictionary to use and its content: the given file, dict.txt beside the tokenizer, or (None) of the
    tokenizer alone."""
    file = given or find_tokenizer(path).with_name("dict.txt")
    if given is None and not file.is_file():
        return subwords.dictionary(), None
    return read_dictionary(file), read_file(file)


def dictionary_text(symbols: Iterable[str]) -> str:
    """dict.txt of symbols whose counts nobody knows."""
    return "".join(f"{symbol} 1\n" for symbol in symbols)
