"""Every token of a stream is a target exactly once, whatever the window, the offset and the context."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import ConcatDataset, Dictionary, data_utils, indexed_dataset

from fairseq_efficient.data.token_windows import TokenStream, WindowDataset, block_windows, load_stream
from fairseq_efficient.errors import UserError
from tests.made_data import make_stream_data

PAD, EOS = 1, 2


def write(path: Path, items: list[list[int]], dtype: type = np.uint16) -> None:
    builder = indexed_dataset.MMapIndexedDatasetBuilder(f"{path}.bin", dtype=dtype)
    for item in items:
        builder.add_item(torch.tensor(item))
    builder.finalize(f"{path}.idx")


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    draw = np.random.default_rng(0)
    write(tmp_path / "train", [[*draw.integers(4, 90, n).tolist(), EOS] for n in (5, 1, 30, 12, 0, 51)])
    return TokenStream(data_utils.load_indexed_dataset(str(tmp_path / "train"), None, "mmap"))


def test_a_pickled_stream_reads_the_same(stream: TokenStream):
    assert everything(pickle.loads(pickle.dumps(stream))) == everything(stream)


def everything(stream: TokenStream) -> list[int]:
    return stream.slice(0, len(stream)).tolist()


@pytest.mark.parametrize("offset", [0, 1, 6, 7])
@pytest.mark.parametrize("total", [1, 6, 7, 8, 105])
def test_blocks_cover_everything_once(total: int, offset: int):
    windows = block_windows(total, 7, offset)
    covered = [place for start, end in windows for place in range(start, end)]
    assert covered == list(range(total)) and max(end - start for start, end in windows) <= 7


@pytest.mark.parametrize("context", [0, 1, 5, 200])
@pytest.mark.parametrize("length", [1, 7, 13, 500])
def test_each_token_is_predicted_once_from_what_stands_before_it(stream: TokenStream, length: int, context: int):
    tokens = everything(stream)
    dataset = WindowDataset(stream, pad=PAD, eos=EOS, length=length, context=context)
    scored = []
    for index in range(len(dataset)):
        item = dataset[index]
        source, target = item["source"].tolist(), item["target"].tolist()
        assert len(source) == len(target) == dataset.size(index)
        start = sum(dataset.windows[index][:1])
        early = max(start - context, 0)
        assert source == ([EOS, *tokens])[early : early + len(source)]
        assert target[: item["start"]] == [PAD] * (start - early)
        scored += target[item["start"] :]
    assert scored == tokens


def test_a_batch_counts_targets_and_pads_at_the_right(stream: TokenStream):
    dataset = WindowDataset(stream, pad=PAD, eos=EOS, length=40, context=3)
    batch = dataset.collater([dataset[index] for index in range(len(dataset))])
    assert batch["ntokens"] == len(stream) == int(batch["target"].ne(PAD).sum())
    assert batch["start_indices"][0] == 0 and set(batch["start_indices"][1:]) == {3}
    lengths = batch["net_input"]["src_lengths"]
    pads = torch.arange(batch["target"].size(1)) >= lengths.unsqueeze(1)
    assert torch.equal(batch["net_input"]["src_tokens"].eq(PAD), pads)


def test_roll_changes_windows_with_the_epoch_only(stream: TokenStream):
    def make() -> WindowDataset:
        return WindowDataset(stream, pad=PAD, eos=EOS, length=9, shuffle=True, roll=True, seed=3)

    seen = set()
    for epoch in range(1, 9):
        dataset = make()
        dataset.set_epoch(epoch)
        again = make()
        again.set_epoch(5)
        again.set_epoch(epoch)
        assert np.array_equal(dataset.windows, again.windows)
        assert np.array_equal(dataset.ordered_indices(), again.ordered_indices())
        assert sorted(dataset.ordered_indices()) == list(range(len(dataset)))
        assert sum(len(dataset[i]["target"]) for i in range(len(dataset))) == len(stream)
        seen.add(tuple(dataset.windows[0]))
    assert len(seen) > 3 and not make().can_reuse_epoch_itr_across_epochs


def test_sides_stand_beside_the_source(stream: TokenStream, tmp_path: Path):
    marks = [int(token % 3 == 0) for token in everything(stream)]
    write(tmp_path / "sides", [marks], np.uint8)
    sides = TokenStream(data_utils.load_indexed_dataset(str(tmp_path / "sides"), None, "mmap"))
    dataset = WindowDataset(stream, pad=PAD, eos=EOS, length=8, sides=sides, context=2)
    for index in range(len(dataset)):
        item = dataset[index]
        start = max(int(dataset.windows[index][0]) - 2, 0)
        expected = [1, *marks][start : start + len(item["source"])]
        assert item["sides"].tolist() == expected
    write(tmp_path / "short", [marks[1:]], np.uint8)
    short = TokenStream(data_utils.load_indexed_dataset(str(tmp_path / "short"), None, "mmap"))
    with pytest.raises(UserError, match="not of this data"):
        WindowDataset(stream, pad=PAD, eos=EOS, length=8, sides=short)


def test_joined_data_is_one_stream(tmp_path: Path):
    write(tmp_path / "a", [[4, 5], [6]])
    write(tmp_path / "b", [[7, 8, 9]], np.int32)
    parts = [data_utils.load_indexed_dataset(str(tmp_path / name), None, "mmap") for name in "ab"]
    stream = TokenStream(ConcatDataset(parts))
    for start in range(7):
        for end in range(start, 7):
            assert stream.slice(start, end).tolist() == [4, 5, 6, 7, 8, 9][start:end]
    with pytest.raises(UserError, match="mmap"):
        TokenStream([torch.tensor([1])])


def damaged(folder: Path, how: str) -> Path:
    """Data whose training split has something wrong with it."""
    make_stream_data(folder)
    index, data = (folder / f"train.{kind}" for kind in ("idx", "bin"))
    if how in ("no index", "no data"):
        (index if how == "no index" else data).unlink()
    elif how in ("empty index", "empty data"):
        (index if how == "empty index" else data).write_bytes(b"")
    elif how == "junk":
        index.write_bytes(b"hello")
    elif how == "another dictionary":
        (folder / "dict.txt").write_text("a 1\nb 1\n")
    else:
        file = data if how == "data cut off" else index
        file.write_bytes(file.read_bytes()[: 20 if how == "header cut off" else -10])
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no index", r"no split 'train' \(there are: test, valid\)"),
        ("no data", r"no split 'train' \(there are: test, valid\)"),
        ("empty index", r"train\.idx is empty"),
        ("empty data", r"train\.bin is empty"),
        ("junk", r"train\.idx: not an index that"),
        ("header cut off", r"train\.idx is cut off"),
        ("index cut off", r"train\.idx is cut off"),
        ("data cut off", r"train\.bin is cut off, or of another train\.idx"),
        ("another dictionary", r"train\.bin holds token 14, but the dictionary has 6 types: it is of other data"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, how: str, message: str):
    folder = damaged(tmp_path, how)
    with pytest.raises(UserError, match=message):
        load_stream(str(folder / "train"), Dictionary.load(str(folder / "dict.txt")), "mmap")


def test_whole_files_are_read(tmp_path: Path):
    folder = make_stream_data(tmp_path)
    stream = load_stream(str(folder / "valid"), Dictionary.load(str(folder / "dict.txt")), None)
    assert len(stream) == 200
