"""Layouts out of a supernet: the most probable, within a budget, drawn; and the command that trains one."""

import itertools
import shlex
from typing import Any

import pytest
import torch

from fairseq_efficient.errors import UserError
from par_search.costs import Costs, Shape
from par_search.derive import draw, most_probable, within_budget, without_identity
from par_search.latency import measure, measure_kinds, usual_tokens
from par_search.layout import KINDS
from par_search.retrain import retrain_command
from tests.par_search.helpers import ADAPTIVE, par_lm, supernet
from tests.stream_models import dictionary, tokens
from tests.util import assert_close


def probabilities(blocks: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.softmax(2 * torch.randn(blocks, 3), -1)


def test_the_most_probable_layout():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]])
    assert most_probable(p) == "aifa" and without_identity("aifa") == "afa"
    with pytest.raises(UserError, match="has no block but identity"):
        without_identity("iii")


@pytest.mark.parametrize("costs", [Costs((3.0, 1.0, 0.0), "ms", 2.0), Costs((1.31, 0.27, 0.01), "GFLOP"),
                                   Costs((1.0, 4.0, 0.5), "ms")], ids=str)  # fmt: skip
def test_a_budget_is_kept_exactly(costs: Costs):
    """No layout within the budget is more probable: all 3^5 are tried."""
    for seed, share in itertools.product(range(6), (0.25, 0.5, 0.75, 1.0)):
        p = probabilities(5, seed)
        every = ["".join(kinds) for kinds in itertools.product(KINDS, repeat=5)]
        chance = {
            one: sum(p[i, KINDS.index(kind)].double().log().item() for i, kind in enumerate(one)) for one in every
        }
        most = max(costs.of_layout(one) for one in every)
        least = min(costs.of_layout(one) for one in every)
        budget = least + share * (most - least)
        found = within_budget(p, costs, budget)
        allowed = [one for one in every if costs.of_layout(one) <= budget + 1e-9]
        assert costs.of_layout(found) <= budget + 1e-9
        assert chance[found] == pytest.approx(max(chance[one] for one in allowed), abs=1e-9)
    assert within_budget(p, costs, 1e9) == most_probable(p)
    even = within_budget(torch.full((5, 3), 1 / 3), costs, budget)
    assert costs.of_layout(even) == max(costs.of_layout(one) for one in every if costs.of_layout(one) <= budget + 1e-9)
    with pytest.raises(UserError, match=r"--budget 0.001: no layout costs less than 36 ms"):
        within_budget(probabilities(36), Costs((1.0, 1.0, 1.0), "ms"), 0.001)
    nothing = torch.tensor([[0.1, 0.2, 0.7]] * 3)  # that no block is one at all is no answer
    assert sorted(within_budget(nothing, Costs((2.0, 1.0, 0.0), "ms"), 1.5)) == ["f", "i", "i"]


def test_a_budget_of_32_blocks_takes_no_time():
    found = within_budget(probabilities(36), Costs((1.31, 0.27, 0.0), "GFLOP"), 12.0)
    assert len(found) == 36 and 1.31 * found.count("a") + 0.27 * found.count("f") <= 12.0


def test_drawn_layouts_differ_and_follow_the_probabilities():
    p = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]])
    torch.manual_seed(0)
    found = draw(p, 8)
    assert found[0] == "af" and sorted(found) == ["af", "ai", "ff", "fi"]
    torch.manual_seed(0)
    assert draw(p, 8) == found and draw(p, 1) == ["af"]
    assert draw(torch.tensor([[0.0, 0.0, 1.0]]), 3) == ["i"]


@pytest.mark.parametrize("flags", [{}, ADAPTIVE], ids=["full", "adaptive"])
def test_the_loss_of_a_forced_layout(flags: dict[str, Any]):
    net, target = supernet(3, **flags), tokens(2, 12, seed=4)
    target[0, 9:] = 1
    output, _ = net(tokens(), layout="afi")
    log_probs = net.get_normalized_probs((output, {}), log_probs=True).gather(2, target.unsqueeze(2)).squeeze(2)
    expected = -log_probs[target != 1].double().sum()
    assert_close(net.decoder.nll(output, target).double(), expected, 1e-4)
    assert_close(net.decoder.nll(output, target, reduce=False).double().sum(), expected, 1e-4)


def test_measuring_runs():
    options = par_lm().decoder.options
    for cache in (False, True):
        shape = Shape.of(options.block, 5, 7, batch=2)
        found = measure(dictionary(), options, ["afaf", "aaaaaaaa" * 8, ""], shape, torch.device("cpu"), runs=3)
        assert 0 < found[2] < found[0] < found[1]
        blocks, rest, nets = measure_kinds(dictionary(), options, shape, torch.device("cpu"), 3, 20, ["a" * 30])
        assert blocks[0] > blocks[1] > 0 and nets[0] > rest > 0
        options = par_lm(cache_memory="keys").decoder.options if not cache else options


CFG: dict[str, Any] = {
    "common": {"user_dir": "par_search", "cpu": True, "seed": 3, "log_format": "json", "log_interval": 100},
    "model": {
        "_name": "par_supernet_small", "decoder_blocks": 6, "decoder_embed_dim": 128, "cache_memory": "hidden",
        "same_length": True, "dropout": 0.2, "adaptive_softmax_cutoff": "250,2500", "tau_start": 5.0,
        "clamp_len": -1, "tokens_per_sample": 32, "adaptive_input_cutoff": None,
    },
    "task": {"_name": "par_search", "data": "my data", "tokens_per_sample": 32, "arch_warmup_updates": 5, "seed": 3},
    "criterion": {"_name": "par_search", "latency_weight": 0.1},
    "optimization": {"max_update": 100, "lr": [0.01], "clip_norm": 0.25, "update_freq": [2], "stop_time_hours": 0.0},
    "dataset": {"batch_size": 8, "num_workers": 1, "train_subset": "part"},
    "optimizer": {"_name": "par_search", "weight_optimizer": "lamb", "arch_lr": 0.5, "weight_decay": 0.0, "lr": [0.01]},
    "lr_scheduler": {"_name": "cosine", "warmup_updates": 10, "min_lr": 0.001, "lr": [0.01]},
    "checkpoint": {"save_dir": "runs/search", "restore_file": "old.pt", "save_interval_updates": 50, "patience": 3,
                   "no_epoch_checkpoints": True, "reset_optimizer": True, "keep_last_epochs": -1},
    "distributed_training": {"ddp_backend": "legacy_ddp", "distributed_world_size": 4, "device_id": 1},
}  # fmt: skip


def test_the_command_has_what_differs_from_defaults():
    words = shlex.split(retrain_command(CFG, "aff", "runs/x y"))
    pairs = dict(itertools.pairwise(words))
    assert words[:2] == ["fairseq-train", "my data"] and pairs["--save-dir"] == "runs/x y"
    expected = {
        "--task": "segment_lm", "--arch": "par_lm", "--layout": "aff", "--decoder-embed-dim": "128", "--dropout": "0.2",
        "--adaptive-softmax-cutoff": "250,2500", "--tokens-per-sample": "32", "--max-update": "100", "--lr": "0.01",
        "--clip-norm": "0.25", "--update-freq": "2", "--batch-size": "8", "--optimizer": "par_search",
        "--weight-optimizer": "lamb", "--lr-scheduler": "cosine", "--warmup-updates": "10", "--min-lr": "0.001",
        "--seed": "3", "--log-format": "json", "--user-dir": "par_search", "--train-subset": "part",
        "--save-interval-updates": "50", "--patience": "3", "--ddp-backend": "legacy_ddp",
    }  # fmt: skip
    assert {flag: pairs[flag] for flag in expected} == expected
    assert {"--same-length", "--cpu", "--no-epoch-checkpoints"} <= set(words)
    assert words.count("--lr") == words.count("--seed") == words.count("--save-dir") == 1
    searched = {"--tau-start", "--arch-lr", "--arch-warmup-updates", "--latency-weight", "--decoder-blocks"}
    of_one_run = {"--restore-file", "--reset-optimizer", "--distributed-world-size", "--device-id"}
    assert not (searched | of_one_run) & set(words)
    assert not {"--clamp-len", "--cache-memory", "--stop-time-hours", "--keep-last-epochs"} & set(
        words
    )  # as by default


def test_flags_that_follow_others_are_said_where_they_differ():
    dataset = {"batch_size": 8, "batch_size_valid": 2, "max_tokens": None, "max_tokens_valid": None}
    scheduler = {"_name": "polynomial_decay", "total_num_update": 20_000.0, "warmup_updates": 10, "lr": [0.01]}
    pairs = dict(itertools.pairwise(shlex.split(
        retrain_command({**CFG, "dataset": dataset, "lr_scheduler": scheduler}, "aff", "x")
    )))  # fmt: skip
    assert pairs["--batch-size-valid"] == "2" and pairs["--total-num-update"] == "20000.0"
    dataset["batch_size_valid"], scheduler["total_num_update"] = 8, 100
    words = retrain_command({**CFG, "dataset": dataset, "lr_scheduler": scheduler}, "aff", "x")
    assert not {"--batch-size-valid", "--total-num-update", "--max-tokens-valid"} & set(shlex.split(words))


def test_a_stock_optimizer_stays():
    cfg = {**CFG, "optimizer": {"_name": "adam", "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "lr": [0.01]}}
    words = shlex.split(retrain_command(cfg, "aff", "x"))
    pairs = dict(itertools.pairwise(words))
    assert pairs["--optimizer"] == "adam" and pairs["--adam-betas"] == "(0.9, 0.98)" and "--adam-eps" not in words


def test_usual_tokens_come_as_often_as_the_dictionary_counts_them():
    words = dictionary()
    special, types = words.nspecial, len(words)
    words.count[special:] = [0] * (types - special)
    words.count[special + 2], words.count[special + 5] = 300, 100
    state = torch.get_rng_state()
    found = torch.bincount(usual_tokens(words, 4000), minlength=types)
    assert found[special + 2] + found[special + 5] == 4000 and 2800 < found[special + 2] < 3200
    assert torch.equal(torch.get_rng_state(), state)
    words.count = [7] * types  # counted alike: by rank
    found = torch.bincount(usual_tokens(words, 20_000), minlength=types)
    assert not found[:special].any() and found[special] > 1.2 * found[special + 2] > 1.2 * found[special + 9] > 0
