"""Tiny binarised data sets: pairs, streams of characters with boundaries, sentences of two classes."""

import random
from pathlib import Path

import numpy as np
import torch


def make_pair_data(
    folder: Path | str,
    train: int = 40,
    valid: int = 12,
    test: int = 12,
    src_len: tuple[int, int] = (5, 30),
    vocab: int = 40,
    seed: int = 0,
) -> Path:
    """Write a binarised ``src``-``tgt`` data set with a joined dictionary; a target is its source's first few words."""
    from fairseq.data import Dictionary, indexed_dataset

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words, draw = Dictionary(), random.Random(seed)
    for index in range(vocab):
        words.add_symbol(f"w{index}", n=vocab - index)
    for side in ("src", "tgt"):
        words.save(str(folder / f"dict.{side}.txt"))
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        sources = [draw.choices(range(words.nspecial, len(words)), k=draw.randint(*src_len)) for _ in range(count)]
        for side, lines in (("src", sources), ("tgt", [line[: draw.randint(3, 6)] for line in sources])):
            prefix = str(folder / f"{split}.src-tgt.{side}")
            builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(words))
            for line in lines:
                builder.add_item(torch.IntTensor([*line, words.eos()]))
            builder.finalize(f"{prefix}.idx")
    return folder


def make_stream_data(folder: Path | str, train: int = 640, valid: int = 200, test: int = 200, seed: int = 0) -> Path:
    """Write binarised character data, words of a small lexicon in documents of some 80 characters, with the boundaries
    of a tokenizer that ends a segment at spaces and after every third letter."""
    from fairseq.data import Dictionary, indexed_dataset

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    letters, draw = Dictionary(), random.Random(seed)
    for symbol in "\u2581abcdefghij":
        letters.add_symbol(symbol, n=9)
    letters.save(str(folder / "dict.txt"))
    lexicon = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 7))) for _ in range(30)]
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        tokens = indexed_dataset.make_builder(str(folder / f"{split}.bin"), impl="mmap", vocab_size=len(letters))
        marks = indexed_dataset.MMapIndexedDatasetBuilder(str(folder / f"{split}.boundaries.bin"), dtype=np.uint8)
        written = 0
        while written < count:
            length = min(80, count - written)
            text = "\u2581".join(draw.choices(lexicon, k=40))[: length - 1]
            ids = [*(letters.index(symbol) for symbol in text), letters.eos()]
            tokens.add_item(torch.IntTensor(ids))
            ends = [symbol == "\u2581" or place % 3 == 2 for place, symbol in enumerate(text)]
            marks.add_item(torch.tensor([*map(int, ends), 1]))
            written += len(ids)
        tokens.finalize(str(folder / f"{split}.idx"))
        marks.finalize(str(folder / f"{split}.boundaries.idx"))
    return folder


def make_sentence_data(
    folder: Path | str,
    train: int = 40,
    valid: int = 16,
    test: int = 16,
    lengths: tuple[int, int] = (5, 24),
    vocab: int = 30,
    pairs: bool = False,
    seed: int = 0,
) -> Path:
    """Write ``sentence_prediction`` data: the label says which of the markers w0 and w1 is in the (last) sentence."""
    from fairseq.data import Dictionary, indexed_dataset

    folder, draw = Path(folder), random.Random(seed)
    words, labels = Dictionary(), Dictionary()
    for index in range(vocab):
        words.add_symbol(f"w{index}", n=vocab - index)
    for label in ("0", "1"):
        labels.add_symbol(label, n=9)
    sides = {"input0": words, **({"input1": words} if pairs else {}), "label": labels}
    for side, symbols in sides.items():
        (folder / side).mkdir(parents=True, exist_ok=True)
        symbols.save(str(folder / side / "dict.txt"))
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        names = {side: str(folder / side / split) for side in sides}
        builders = {
            side: indexed_dataset.make_builder(f"{name}.bin", impl="mmap", vocab_size=len(sides[side]))
            for side, name in names.items()
        }
        for _ in range(count):
            chosen = draw.randrange(2)
            for side in sides:
                ids = draw.choices(range(words.nspecial + 2, len(words)), k=draw.randint(*lengths))
                if side == ("input1" if pairs else "input0"):
                    ids[draw.randrange(len(ids))] = words.nspecial + chosen
                ids = [labels.nspecial + chosen] if side == "label" else [*ids, words.eos()]
                builders[side].add_item(torch.IntTensor(ids))
        for side, name in names.items():
            builders[side].finalize(f"{name}.idx")
    return folder
