"""What the tests of language models with memory share: tiny vocabularies, streams in blocks, and fairseq's commands."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from torch import Tensor

from tests.util import ROOT, run_in_process


def dictionary(words: int = 30) -> Dictionary:
    found = Dictionary()
    for number in range(words):
        found.add_symbol(f"w{number}", n=words - number)
    return found


def task(words: int = 30) -> SimpleNamespace:
    return SimpleNamespace(source_dictionary=dictionary(words), target_dictionary=dictionary(words))


def tokens(rows: int = 2, count: int = 12, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randint(4, 34, (rows, count))


def blockwise(model: Any, stream: Tensor, sizes: list[int], **more: Any) -> Tensor:
    """Outputs (B, N, .) of a stream read in blocks of ``sizes``, memory going from one to the next."""
    memory, parts, place = None, [], 0
    for size in sizes:
        out, extra = model.decoder(stream[:, place : place + size], memory=memory, **more)
        memory, place = extra["memory"], place + size
        parts.append(out)
    return torch.cat(parts, 1)


# --- trained models, by their folders --------------------------------------------------------------------------------


def last(folder: Path) -> str:
    return str(folder / "checkpoint_last.pt")


def common(package: str, data: Path, folder: Path) -> list[str]:
    """Arguments of every tool that reads a trained model."""
    user_dir = str(ROOT / package)
    flags = ["--task", "segment_lm", "--path", last(folder), "--cpu", "--num-workers", "0"]
    return [str(data), "--user-dir", user_dir, *flags]


def load(data: Path, folder: Path, split: str = "test", **changes: Any) -> tuple[Any, Tensor]:
    """(model, tokens of a split)."""
    overrides = {"data": str(data), **changes}
    models, _, loaded = checkpoint_utils.load_model_ensemble_and_task([last(folder)], overrides)
    loaded.load_dataset(split)
    stream = loaded.dataset(split).stream
    return models[0].eval(), torch.from_numpy(stream.slice(0, len(stream)))


@torch.no_grad()
def bits_by_hand(model: Any, stream: Tensor, block: int, length: int | None = None) -> float:
    """Bits per token of one lane, by full distributions."""
    total, memory = 0.0, None
    for start in range(0, len(stream) - 1, block):
        end = min(start + block, len(stream) - 1)
        output, extra = model.decoder(stream[None, start:end], memory=memory, memory_length=length)
        memory = extra["memory"]
        log_probs = model.get_normalized_probs((output, extra), log_probs=True)[0].double()
        total -= float(log_probs.gather(1, stream[start + 1 : end + 1, None]).sum())
    return total / (len(stream) - 1) / math.log(2)


def eval_lm(package: str, data: Path, folder: Path, *more: Any) -> tuple[float, float, int]:
    """Bits, perplexity, tokens."""
    flags = ("--gen-subset", "test", "--log-format", "none", *map(str, more))
    output = run_in_process("eval_lm", [*common(package, data, folder), *flags])
    loss = re.search(r"Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)", output)
    counted = re.search(r"Evaluated ([\d,]+) tokens", output)
    assert loss is not None and counted is not None, output
    return float(loss[1]), float(loss[2]), int(counted[1].replace(",", ""))


def check_greedy_generation(
    package: str, data: Path, folder: Path, length: int, best: Callable[..., list[int]]
) -> None:
    """fairseq-generate --beam 1 goes on from each block's first tokens as ``best(model, prompt, length, eos)`` does."""
    model, stream = load(data, folder)
    flags = ("--gen-subset", "test", "--batch-size", "2", "--prefix-size", "7", "--max-len-b", str(length), "--beam",
             "1", "--tokens-per-sample", "50")  # fmt: skip
    output = run_in_process("generate", [*common(package, data, folder), *flags])
    found = dict(re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, re.MULTILINE))
    assert len(found) == 4
    words = model.decoder.dictionary
    for number, line in found.items():
        start = 50 * int(number) + 1  # a block's target
        prompt = stream[start : start + 7].tolist()
        prompt = prompt[: prompt.index(words.eos())] if words.eos() in prompt else prompt
        expected = [token for token in best(model, prompt, length, words.eos()) if token != words.eos()]
        assert line.split()[:length] == [words[token] for token in expected][: len(line.split())]


def check_interactive(package: str, data: Path, folder: Path, prompts: Path, *more: str) -> None:
    """fairseq-interactive goes on from what each line says."""
    prompts.write_text("a b c d e\na b\n", encoding="utf-8")
    flags = ("--input", str(prompts), "--max-len-b", "20", "--buffer-size", "2", *more)
    output = run_in_process("interactive", [*common(package, data, folder), *flags])
    found = re.findall(r"^H-(\d)\t\S+\t(.*)$", output, re.MULTILINE)
    assert {number for number, _ in found} == {"0", "1"}
    assert all(text.startswith("a b c d e" if number == "0" else "a b") for number, text in found)
