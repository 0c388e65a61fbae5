"""fairseq's own commands with the plugin: training options, decoding, cuts, BART, the original's commands."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary, indexed_dataset

from fairseq_efficient.checkpoints import read_checkpoint
from fairseq_efficient.errors import UserError
from tests.deep_pyramidion.helpers import documents, pad, prefixes
from tests.deep_pyramidion.test_state_dict import BART_SIZES, tiny_bart
from tests.util import ROOT, SYSTEMS, assert_close, refused, run_cli, run_in_process, train_args

USER_DIR = ["--user-dir", str(ROOT / "deep_pyramidion")]
SIZES = [
    word
    for name, value in {**BART_SIZES, "max_source_positions": 64, "dropout": 0.0}.items()
    for word in (f"--{name.replace('_', '-')}", str(value))
]
POOLED = ["--encoder-pooling", "topk", "--enc-layers-and-token-width", "0:16,2:8", "--chunk-size", "8"]


def flags(*more: str, arch: str = "pyramidion_base", pooled: bool = True) -> list[str]:
    return ["--arch", arch, *SIZES, *(POOLED if pooled else []), "--share-all-embeddings", *more]


def train(data: Path, save: Path, *more: str, tool: Any = run_in_process) -> str:
    """Two updates; the log."""
    return tool("train", [*train_args(data, save, SYSTEMS[0]), "--max-update", "2", *flags(), *more])


def weights(save: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(str(save / "checkpoint_last.pt"))["model"]


def generate(data: Path, checkpoint: Path, *more: str, tool: Any = run_in_process) -> str:
    """Stock drops what is left of a split after batches of a multiple of 8: here the multiple is 1."""
    decode = ["--cpu", "--num-workers", "0", "--required-batch-size-multiple", "1", "--beam", "3", "--max-len-b", "12"]
    return tool("generate", [data, *USER_DIR, "--task", "translation", "--path", checkpoint, *decode, *more])


def hypotheses(output: str) -> dict[int, tuple[float, str]]:
    found = re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", output, re.MULTILINE)
    return {int(number): (float(score), words) for number, score, words in found}


def assert_same_hypotheses(one: str, other: str) -> None:
    mine, theirs = hypotheses(one), hypotheses(other)
    assert mine.keys() == theirs.keys() and len(mine) == 12
    for number, (score, words) in mine.items():
        assert words == theirs[number][1] and abs(score - theirs[number][0]) < 1e-4


@pytest.fixture(scope="module")
def pooled(pair_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("pooled")
    train(pair_data, save, "--max-update", "12", "--lr", "0.003")
    return save / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def plain(pair_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = tmp_path_factory.mktemp("plain")
    train(pair_data, save, "--encoder-pooling", "lambda", "--max-source-positions", "16", "--truncate-source")
    return save / "checkpoint_last.pt"


@pytest.mark.parametrize(
    "more",
    [
        ("--max-tokens", "150", "--batch-size", "40"),
        ("--num-batch-buckets", "2", "--max-tokens", "400"),
        ("--required-seq-len-multiple", "8", "--left-pad-source", "--left-pad-target"),
        ("--checkpoint-activations",),
        ("--encoder-layerdrop", "0.5", "--decoder-layerdrop", "0.5"),
        ("--cpu-bf16",),
        ("--topk-softmax-base-final", "100", "--topk-softmax-base-updates", "2", "--hard-topk-inference"),
        ("--chunk-overlap", "3", "--chunk-shift", "--chunk-positions", "--encoder-pooling-arch", "ffn"),
        ("--encoder-learned-pos", "--decoder-learned-pos", "--layernorm-embedding", "--quant-noise-pq", "0.1"),
    ],
    ids=lambda more: more[0],
)
def test_p18_options_of_training(pair_data: Path, tmp_path: Path, more: tuple[str, ...]):
    output = train(pair_data, tmp_path, *more)
    assert '"num_updates": "2"' in output and all(t.isfinite().all() for t in weights(tmp_path).values())
    state = read_checkpoint(str(tmp_path / "checkpoint_last.pt"))
    assert state.get("args") is None and isinstance(state["cfg"], dict)
    if more[0] in ("--checkpoint-activations", "--cpu-bf16"):
        assert len(hypotheses(generate(pair_data, tmp_path / "checkpoint_last.pt"))) == 12


def test_p18_hypotheses_depend_on_no_option_of_batching(pair_data: Path, pooled: Path):
    """Alone, together, by tokens, in padded widths, padded on the other side, or an ensemble of itself."""
    reference = generate(pair_data, pooled, "--batch-size", "1")
    for more in (
        ("--batch-size", "12"),
        ("--max-tokens", "64"),
        ("--batch-size", "5", "--required-seq-len-multiple", "16"),
        ("--batch-size", "12", "--path", f"{pooled}:{pooled}"),
        ("--batch-size", "12", "--left-pad-source"),  # stock: this switches it off
    ):
        assert_same_hypotheses(generate(pair_data, pooled, *more), reference)


def test_p18_model_overrides(pair_data: Path, pooled: Path):
    soft = generate(pair_data, pooled)
    same = generate(pair_data, pooled, "--model-overrides", "{'chunk_size': 8, 'hard_topk_inference': False}")
    assert_same_hypotheses(soft, same)
    hard = generate(pair_data, pooled, "--model-overrides", "{'hard_topk_inference': True}")
    other = generate(pair_data, pooled, "--model-overrides", "{'enc_layers_and_token_width': '0:16', 'chunk_size': 64}")
    scores = [[score for score, _ in hypotheses(one).values()] for one in (soft, hard, other)]
    assert len(scores[0]) == len(scores[1]) == len(scores[2]) == 12 and scores[0] != scores[1] != scores[2] != scores[0]
    with pytest.raises(UserError, match="layer 7 does not exist, the encoder has layers 0 to 2"):
        generate(pair_data, pooled, "--model-overrides", "{'enc_layers_and_token_width': '7:8'}")


def interactive(data: Path, checkpoint: Path, lines: list[str], folder: Path, *more: str) -> str:
    (folder / "in.txt").write_text("\n".join(lines) + "\n")
    decode = ["--cpu", "--beam", "3", "--max-len-b", "12", "--buffer-size", "3", "--batch-size", "3"]
    where = ["--path", checkpoint, "--input", folder / "in.txt", "--source-lang", "src", "--target-lang", "tgt"]
    return run_in_process("interactive", [data, *USER_DIR, *where, *decode, *more])


@pytest.mark.parametrize("criterion", ["cross_entropy", "label_smoothed_cross_entropy", "adaptive_loss"])
def test_an_adaptive_softmax_trains_under_every_criterion(pair_data: Path, tmp_path: Path, criterion: str):
    more = ("--adaptive-softmax-cutoff", "9,20", "--criterion", criterion, "--ddp-backend", "legacy_ddp")
    train(pair_data, tmp_path, *more)
    assert any("adaptive_softmax.tail" in name for name in weights(tmp_path))
    if criterion == "cross_entropy":
        assert len(hypotheses(generate(pair_data, tmp_path / "checkpoint_last.pt"))) == 12


def test_alignments_are_refused_while_pooling(pair_data: Path, pooled: Path, tmp_path: Path):
    for more in (["--print-alignment"], ["--print-alignment", "soft"]):
        with pytest.raises(UserError, match="--print-alignment needs attention over source tokens"):
            generate(pair_data, pooled, *more)
    with pytest.raises(UserError, match="--replace-unk needs attention over source tokens"):
        interactive(pair_data, pooled, ["w1 w2"], tmp_path, "--replace-unk", "")


def test_alignments_without_pooling(pair_data: Path, tmp_path: Path):
    """Every hypothesis has one, and the padding of its batch does not show in it."""
    train(pair_data, tmp_path, "--encoder-pooling", "lambda")
    checkpoint, found = tmp_path / "checkpoint_last.pt", []
    for size in ("1", "12"):
        output = generate(pair_data, checkpoint, "--print-alignment", "--batch-size", size, "--min-len", "4")
        found.append(dict(re.findall(r"^A-(\d+)\t(.+)$", output, re.MULTILINE)))
    assert len(found[0]) == 12 and found[0] == found[1]


def test_replace_unk_without_pooling(pair_data: Path, plain: Path, tmp_path: Path):
    lines = ["w1 w2 strange", "w5"]
    output = interactive(pair_data, plain, lines, tmp_path, "--replace-unk", "")
    assert (
        hypotheses(output) == hypotheses(interactive(pair_data, plain, lines, tmp_path))
        and len(hypotheses(output)) == 2
    )


def test_a_source_beyond_the_checkpoint_is_cut_and_counted(pair_data: Path, plain: Path, tmp_path: Path):
    """fairseq-generate and fairseq-interactive, asked for 8,192 tokens of a model of 16."""
    beyond = ("--max-source-positions", "8192", "--truncate-source")
    output = generate(pair_data, plain, *beyond)
    assert_same_hypotheses(output, generate(pair_data, plain, "--max-source-positions", "16", "--truncate-source"))
    told = [int(n) for n in re.findall(r"(\d+) source\(s\) longer than the model's 16 tokens were cut", output)]
    assert told and told == sorted(told) and "EOS kept" in output
    document = " ".join(f"w{n % 40}" for n in range(200))
    cut = " ".join(document.split()[:15])
    output = interactive(pair_data, plain, [document, cut, "w1 w2"], tmp_path, *beyond)
    found = hypotheses(output)
    assert sorted(found) == [0, 1, 2] and found[0] == found[1] != found[2]
    assert "1 source(s) longer than the model's 16 tokens were cut" in output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--enc-layers-and-token-width", "0:8,1:9"), "layer 1 keeps 9 tokens but only 8 reach it"),
        (("--chunk-size", "-4"), "--chunk-size -4: must be at least 1"),
        (("--topk-softmax-base", "0.9"), "--topk-softmax-base must be greater than 1"),
        (("--encoder-attention-heads", "5"), "--encoder-attention-heads 5 must divide --encoder-embed-dim 16"),
    ],
)
def test_p19_mistakes_are_one_line(pair_data: Path, tmp_path: Path, more: tuple[str, ...], message: str):
    assert message in train(pair_data, tmp_path, *more, tool=refused)


def test_p19_a_width_is_not_run(pair_data: Path, tmp_path: Path):
    code = f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()"
    with pytest.raises(UserError, match="expected layer:width pairs"):
        train(pair_data, tmp_path, "--enc-layers-and-token-width", code)
    line = train(pair_data, tmp_path, "--enc-layers-and-token-width", f"{{0: {code}}}", tool=refused)
    assert "--enc-layers-and-token-width: expected layer:width pairs" in line
    assert not (tmp_path / "made").exists()


def test_hydra_trains_the_same_model(pair_data: Path, tmp_path: Path):
    """Two updates from a YAML file and from a command line: the same weights, bit for bit."""
    run_cli(
        "hydra_train",
        ["--config-dir", ROOT / "deep_pyramidion" / "configs", "--config-name", "tiny", f"hydra.run.dir={tmp_path}",
         f"common.user_dir={ROOT / 'deep_pyramidion'}", f"task.data={pair_data}", "++common.cpu=true",
         f"++checkpoint.save_dir={tmp_path / 'yaml'}", "dataset.num_workers=0", "optimization.max_update=2",
         "model.chunk_size=8", "model.enc_layers_and_token_width='0:16,1:8'"]
    )  # fmt: skip
    config = read_checkpoint(str(tmp_path / "yaml" / "checkpoint_last.pt"))["cfg"]
    assert config["model"]["chunk_size"] == 8 and config["model"]["_name"] == "pyramidion_tiny"
    run_cli(
        "train",
        [pair_data, *USER_DIR, "--arch", "pyramidion_tiny", "--task", "long_summarization", "--cpu",
         "--chunk-size", "8", "--enc-layers-and-token-width", "0:16,1:8", "--criterion", "label_smoothed_cross_entropy",
         "--label-smoothing", "0.1", "--batch-size", "8", "--num-workers", "0", "--update-epoch-batch-itr", "True",
         "--max-update", "2", "--lr", "0.001", "--clip-norm", "1.0", "--optimizer", "adam", "--adam-betas",
         "(0.9, 0.98)", "--weight-decay", "0.01", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "100",
         "--seed", "1", "--save-dir", tmp_path / "flags"]
    )  # fmt: skip
    assert_close(weights(tmp_path / "yaml"), weights(tmp_path / "flags"), 0, 0)


# --- BART -----------------------------------------------------------------------------------------------------------


def bart_checkpoint(path: Path, words: Dictionary) -> Any:
    """A checkpoint as fairseq 0.9 wrote BART's: arguments in a Namespace, no config."""
    bart = tiny_bart(words)
    args = argparse.Namespace(arch="bart_base", task="denoising", criterion="cross_entropy", **BART_SIZES)
    history = [{"criterion_name": "CrossEntropyCriterion", "optimizer_name": "FairseqAdam", "num_updates": 500000,
                "lr_scheduler_state": {"best": None}}]  # fmt: skip
    state = {"args": args, "model": bart.state_dict(), "optimizer_history": history, "extra_state": {}}
    torch.save({**state, "last_optimizer_state": None}, path)
    return bart


def test_training_starts_from_bart(pair_data: Path, tmp_path: Path):
    """``--restore-file`` of BART, at learning rate 0: without pooling the result is BART, with it scorers are new."""
    words = Dictionary.load(str(pair_data / "dict.src.txt"))
    words.add_symbol("<mask>")
    bart = bart_checkpoint(tmp_path / "bart.pt", words)
    resets = [f"--reset-{what}" for what in ("optimizer", "lr-scheduler", "dataloader", "meters")]
    common = [
        pair_data, *USER_DIR, *SIZES, "--arch", "pyramidion_bart_base", "--task", "translation", "--source-lang", "src",
        "--target-lang", "tgt", "--cpu", "--optimizer", "adam", "--lr", "0", "--batch-size", "8", "--max-update", "1",
        "--num-workers", "0", "--restore-file", tmp_path / "bart.pt", *resets,
    ]  # fmt: skip
    for pooling, name in ((["--encoder-pooling", "lambda"], "plain"), (POOLED, "pooled")):
        longer = ["--max-source-positions", "200", "--save-dir", tmp_path / name]
        output = run_in_process("train", [*common, *pooling, *longer])
        assert "Loaded checkpoint" in output
    sources, prefix = pad(documents([60, 33], words=40)), pad(prefixes(documents([9, 9], 1, words=40)))
    (ours,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "plain" / "checkpoint_last.pt")])
    with torch.no_grad():
        assert_close(ours.eval()(sources, None, prefix)[0], bart(sources, None, prefix)[0][..., :-1])
    assert ours.encoder.embed_positions.weight.size(0) == 202
    saved = weights(tmp_path / "pooled")
    assert {key for key in saved if ".scorer." in key} == {
        f"encoder.pooler.scorer.{layer}.{what}" for layer in (0, 2) for what in ("weight", "bias")
    }
    assert torch.equal(saved["decoder.layers.1.fc2.weight"], bart.decoder.layers[1].fc2.weight)


# --- the original's commands ----------------------------------------------------------------------------------------


def summarization_data(folder: Path) -> Path:
    """Splits train, dev-0, test-A of documents up to 2,600 pieces, and the sentencepiece model that made them."""
    import sentencepiece

    draw = torch.Generator().manual_seed(0)
    names = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmn"]

    def text(count: int) -> str:
        return " ".join(names[i] for i in torch.randint(0, len(names), (count,), generator=draw).tolist())

    (folder / "raw.txt").write_text("\n".join(text(30) for _ in range(60)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "raw.txt"), model_prefix=str(folder / "spm"), vocab_size=80, minloglevel=2
    )
    pieces, words = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model")), Dictionary()
    for index in range(3, pieces.vocab_size()):
        words.add_symbol(pieces.id_to_piece(index))
    for side in ("src", "tgt"):
        words.save(str(folder / f"dict.{side}.txt"))
    for split, lengths in (
        ("train", [40] * 18 + [2000, 900]),
        ("dev-0", [30, 60] * 4),
        ("test-A", [2000, *[25, 60] * 3, 9]),
    ):
        for side in ("src", "tgt"):
            prefix = str(folder / f"{split}.src-tgt.{side}")
            builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(words))
            for length in lengths:
                line = " ".join(pieces.encode(text(length if side == "src" else 12), out_type=str))
                builder.add_item(words.encode_line(line, add_if_not_exist=False, append_eos=True).int())
            builder.finalize(f"{prefix}.idx")
    return folder


TRAIN = """--task translation --arch pyramidion_base --dataset-impl mmap --optimizer adam --encoder-pooling topk
 --enc-layers-and-token-width {0:_2048,_1:_512} --max-source-positions 2048 --max-target-positions 1024 --chunk-size 512
 --truncate-source --encoder-layers 2 --decoder-layers 2 --source-lang src --target-lang tgt --valid-subset dev-0
 --max-sentences 16 --update-freq 16 --warmup-updates 5000 --patience 220 --lr 5e-4 --max-update 300000
 --total-num-update 300000 --lr-scheduler polynomial_decay --weight-decay 0.1 --share-all-embeddings --save-dir results/
 --sort-back 1 --flip-right 1 --num-workers 4 --attention-dropout 0.1 --dropout 0.1"""
GENERATE = """--task translation --dataset-impl mmap --optimizer adam --max-source-positions 8192 --truncate-source
 --path results/checkpoint_best.pt --gen-subset test-A --results-path ./generate_results --bpe sentencepiece
 --sentencepiece-model spm.model --batch-size 8 --temperature 1.0 --beam 16 --lenpen 1.0 --min-len 72 --max-len-b 966"""


def test_the_originals_two_commands(tmp_path: Path):
    """Word for word; only sizes, the number of updates and of decoded tokens are scaled."""
    data = summarization_data(tmp_path)
    sizes = [word for word in SIZES if "positions" not in word][: 2 * len(BART_SIZES)]
    small = [*sizes, "--encoder-layers", "2", "--cpu", "--num-workers", "0", "--max-update", "2", "--no-progress-bar"]
    command = [word.replace("_", " ") if "{" in word else word for word in TRAIN.split()]
    output = run_cli("train", [data, *USER_DIR, *command, *small], cwd=tmp_path)
    assert "done training" in output and "pooling: {1: 512}" in output
    output = run_cli("generate", [data, *USER_DIR, *GENERATE.split(), "--cpu", "--max-len-b", "80"], cwd=tmp_path)
    log = (tmp_path / "generate_results" / "generate-test-A.txt").read_text()
    assert sorted(hypotheses(log)) == list(range(8)) and "Generate test-A with beam=16" in log
    pieces = {number: len(words.split()) for number, (_, words) in hypotheses(log).items()}
    assert all(72 <= count <= 80 for count in pieces.values())
    detokenized = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", log, re.MULTILINE))
    assert len(detokenized) == 8 and not any("\u2581" in words for words in detokenized.values())
    assert re.search(r"1 source\(s\) longer than the model's 2048 tokens were cut", output)
    assert {key for key in weights(tmp_path / "results") if "scorer" in key} == {
        "encoder.pooler.scorer.1.weight", "encoder.pooler.scorer.1.bias",
    }  # fmt: skip
