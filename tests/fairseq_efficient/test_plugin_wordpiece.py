"""``--bpe wordpiece`` in fairseq's own tools."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from fairseq.data import Dictionary, encoders
from fairseq.data.encoders.utils import get_whole_word_mask

import fairseq_efficient.plugin
from fairseq_efficient.errors import UserError
from fairseq_efficient.text.subwords import read_subwords
from tests.bert_reference import write_bert
from tests.fairseq_efficient.test_text_subwords import write_bytes_bpe, write_vocabulary
from tests.made_data import make_pair_data
from tests.util import ROOT, error_line, run_cli, run_in_process

assert fairseq_efficient.plugin.wordpiece  # registered


def bpe(path: object, case: str = "auto") -> Any:
    return encoders.build_bpe(Namespace(bpe="wordpiece", wordpiece_vocab=str(path), wordpiece_case=case))


def test_encode_and_decode(tmp_path: Path) -> None:
    found = bpe(write_vocabulary(tmp_path / "vocab.txt"))
    assert found.encode("The film isn't played!") == "the film is ##n ' t play ##ed !"
    assert found.decode(found.encode("The film isn't played!")) == "the film isn't played!"
    assert found.decode("the <unk> film") == "the <unk> film" and found.encode("") == "" == found.decode("")
    dictionary = Dictionary()
    for symbol in read_subwords(tmp_path / "vocab.txt").dictionary():
        dictionary.add_symbol(symbol)
    ids = dictionary.encode_line(found.encode("the film isn't \u2603"), add_if_not_exist=False)
    assert dictionary.string(ids) == "the film is ##n ' t <unk>" and ids[-1] == dictionary.eos()
    flags = Namespace(bpe="wordpiece", wordpiece_vocab=str(tmp_path / "vocab.txt"), wordpiece_case="auto")
    mask = get_whole_word_mask(flags, dictionary)
    assert [dictionary[i] for i in range(len(dictionary)) if not mask[i]] == [
        s for s in dictionary.symbols if s[:2] == "##"
    ]


def test_byte_level_too(tmp_path: Path) -> None:
    found = bpe(write_bytes_bpe(tmp_path))
    assert found.encode("that the") == "th at \u0120the" and found.decode("th at \u0120the") == "that the"
    assert found.is_beginning_of_word("\u0120the") and not found.is_beginning_of_word("at")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--bpe wordpiece: give its tokenizer with --wordpiece-vocab FILE"):
        encoders.build_bpe(Namespace(bpe="wordpiece", wordpiece_vocab=None, wordpiece_case="auto"))
    with pytest.raises(UserError, match="No such file"):
        bpe(tmp_path / "no")
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match="not a tokenizer"):
        bpe(tmp_path)


def test_interactive(tmp_path: Path) -> None:
    """A translation model over the pieces' dictionary: text goes in, pieces are translated, text comes out."""
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    data = make_pair_data(tmp_path / "data", train=8, valid=4, test=4)
    dictionary = Dictionary()
    for symbol in read_subwords(vocabulary).dictionary():
        dictionary.add_symbol(symbol)
    for side in ("src", "tgt"):
        dictionary.save(str(data / f"dict.{side}.txt"))
    common = ["--user-dir", str(ROOT / "skimming"), "--cpu"]
    run_in_process(
        "train",
        [str(data), *common, "--arch", "transformer", "--encoder-layers", "1", "--decoder-layers", "1",
         "--encoder-embed-dim", "8", "--decoder-embed-dim", "8", "--encoder-attention-heads", "1",
         "--decoder-attention-heads", "1", "--encoder-ffn-embed-dim", "8", "--decoder-ffn-embed-dim", "8",
         "--optimizer", "adam", "--lr", "0.01", "--batch-size", "8", "--max-update", "1", "--num-workers", "0",
         "--save-dir", str(tmp_path), "--disable-validation", "--no-epoch-checkpoints"],
    )  # fmt: skip
    (tmp_path / "in.txt").write_text("The film isn't good.\n")
    arguments = [str(data), *common, "--path", str(tmp_path / "checkpoint_last.pt"), "--bpe", "wordpiece"]
    arguments += ["--input", str(tmp_path / "in.txt"), "--beam", "1", "--max-len-b", "5"]
    log = run_in_process("interactive", [*arguments, "--wordpiece-vocab", str(vocabulary)])
    lines = {line.partition("\t")[0]: line.split("\t") for line in log.splitlines() if line[:2] in ("S-", "H-", "D-")}
    assert lines["S-0"][1] == "the film is ##n ' t good ."
    assert lines["D-0"][2] == read_subwords(vocabulary).decode(lines["H-0"][2].split())
    assert "--wordpiece-vocab FILE" in error_line(run_cli("interactive", arguments, expect=2))


def test_hub(tmp_path: Path) -> None:
    """fairseq's hub interface on a converted checkpoint: text in, features and text out."""
    from fairseq.models.roberta import RobertaModel

    source = write_bert(tmp_path / "hf", layer_norm_eps=1e-5)
    script = str(ROOT / "scripts" / "convert" / "from_huggingface.py")
    run_cli(script, [str(source), str(tmp_path / "fs"), "--stock", "--no-segments"])
    hub = RobertaModel.from_pretrained(str(tmp_path / "fs"), bpe="wordpiece", wordpiece_vocab=str(tmp_path / "fs"))
    tokens = hub.encode("The film isn't good.")
    assert hub.decode(tokens) == "the film isn't good." and hub.extract_features(tokens).shape == (1, len(tokens), 8)
