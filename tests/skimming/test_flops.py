"""Counted multiply-adds are those of an explicit forward, exactly; published sizes; what a saving can be."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skimming import flops
from skimming.flops import EncoderSizes, dense_macs, layer_macs, predictor_macs, skim_macs
from tests.skimming.helpers import HEAD, VARIANTS, build, features, pad, sentences, set_options


def counted(model, tokens: Tensor, **more) -> int:
    """Multiply-adds as torch counts them; in explicit products, because it sees none in the CPU's fused attention."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, **more)
    total = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


def frozen(**flags):
    """The counter trips over parameters that want a gradient where there is none."""
    return build(**flags).requires_grad_(False)


@pytest.mark.parametrize("name", ["plain", "bert", "protect_sep", "protect_question", "some_layers", "first_and_last"])
@pytest.mark.parametrize("lengths", [[9], [12, 5, 1, 30], [7, 7, 7]])
def test_p7_the_count_is_exact(name: str, lengths: list[int]):
    """Of one packed forward over all tokens: predictors are billed for what they look at, layers for what enters."""
    model, tokens = frozen(**VARIANTS[name]), pad(sentences(lengths))
    set_options(model, inference="packed", backend="loop")
    counts = model(tokens, features_only=True)[1]["skim_counts"]
    sizes = model.encoder.sentence_encoder.sizes
    found = skim_macs(counts.counts(), counts.lengths.long(), counts.protected.long(), sizes)
    assert found.dtype == torch.int64 and found.shape == (len(lengths),)
    assert int(found.sum()) == counted(model, tokens, features_only=True)


@pytest.mark.parametrize("head", [HEAD, "squad"])
def test_p7_heads_are_in_the_ratios(head: str):
    model, tokens = frozen(), pad(sentences([12, 5]))
    model.register_question_answering_head("squad")
    model.requires_grad_(False)
    set_options(model, inference="packed", backend="loop")
    features_macs = counted(model, tokens, features_only=True)
    states = model(tokens, features_only=True)[0]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.classification_heads[head](states)
    of_head = counter.get_total_flops() // 2
    stats = model(tokens, classification_head_name=head)[1]["stats"]
    padded = of_head if head == HEAD else of_head * 17 // 24  # the head itself runs over pads too
    assert int(stats["flops_ratio_unpadded"][1]) == features_macs + padded
    plain = frozen(skim_layers="none")
    set_options(plain, inference="masked")
    dense = counted(plain, tokens, features_only=True)
    assert int(stats["flops_ratio_padded"][0]) == dense + of_head


def test_p7_random_masks_by_hand():
    """Against sums written out sentence by sentence, for random shrinking counts."""
    sizes = EncoderSizes(8, 20, 5, (True, False, True, True))
    lengths = torch.randint(1, 40, (50,))
    protected = torch.minimum(torch.ones_like(lengths), lengths)
    kept = [lengths]
    for flag in sizes.predictors:
        kept.append((torch.rand(50) * kept[-1]).long().clamp(min=1) if flag else kept[-1])
    found = skim_macs(torch.stack(kept[1:]), lengths, protected, sizes)
    for b in range(50):
        total = 0
        for layer, flag in enumerate(sizes.predictors):
            if flag:
                total += (int(kept[layer][b]) - 1) * (8 * 5 + 2 * 5)
            n = int(kept[layer + 1][b])
            total += n * (4 * 64 + 2 * 8 * 20) + 2 * n * n * 8
        assert int(found[b]) == total


def test_p7_keeping_all_is_dense_plus_the_predictors():
    sizes = EncoderSizes(16, 64, 4, (True,) * 6)
    lengths = torch.tensor([3, 17, 40])
    ones = torch.ones_like(lengths)
    kept = lengths.expand(6, -1)
    extra = 6 * predictor_macs(lengths - 1, 16, 4)
    assert torch.equal(skim_macs(kept, lengths, ones, sizes), dense_macs(lengths, sizes) + extra)


def test_p7_published_sizes():
    bert = EncoderSizes(768, 3072, 768, (True,) * 12)
    assert int(dense_macs(torch.tensor([128]), bert)) == 11_173_625_856
    assert abs(flops.gflop(dense_macs(torch.tensor([128]), bert)) - 22.35) < 0.01
    n = torch.tensor([128])
    cost = {p: float(predictor_macs(n, 768, p) / layer_macs(n, 768, 3072)) for p in (768, 64)}
    assert abs(cost[768] - 0.081) < 0.001 and abs(cost[64] - 0.007) < 0.001
    for length, ceiling in ((11, 10.3), (25, 21), (51, 38)):  # linear terms, all but <s> skipped at once
        n = torch.tensor([length])
        linear = 12 * 12 * length / (12 * 12 + (length - 1))
        assert abs(linear - ceiling) / ceiling < 0.03
        found = dense_macs(n, bert) / skim_macs(torch.ones(12, 1).long(), n, torch.ones(1).long(), bert)
        assert float(found) > linear  # the square terms help


def test_the_ratios_are_sums_over_sums():
    model, tokens = build(), pad(sentences([12, 5, 30]), 33)
    with torch.no_grad():
        stats = features(model, tokens, "packed")[1]["stats"]
    sizes = model.encoder.sentence_encoder.sizes
    lengths = torch.tensor([12, 5, 30])
    dense = {
        "unpadded": dense_macs(lengths, sizes).sum(),
        "padded": 3 * dense_macs(torch.tensor([33]), sizes)[0],
        "max_length": 3 * dense_macs(torch.tensor([40]), sizes)[0],
    }
    for name, expected in dense.items():
        above, below = stats[f"flops_ratio_{name}"]
        assert int(above) == int(expected) and above > below > 0
    assert list(stats)[:4] == ["keep_l0", "keep_l1", "keep_l2", "keep_ratio"]
    assert stats["keep_l0"][1] == 47 and stats["keep_ratio"][1] == 3 * 47
