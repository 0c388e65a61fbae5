#!/usr/bin/env python3
"""Read the layout out of a searched supernet, and print the command that trains it: `python scripts/derive_layout.py
CHECKPOINT`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_efficient.errors import UserError, run_main
from fairseq_efficient.files import check_output, write_json
from fairseq_efficient.flags import check_least

EPILOG = """
how the layout is chosen
  --how argmax   each block is what it most probably is
  --how best     the best of --samples layouts drawn by the probabilities (and the most probable one), by the bits per
                 token of --subset that the supernet's own weights give
  --how budget   the most probable layout of those that cost at most --budget
Costs are GFLOP by a formula, or milliseconds with --latency-table (scripts/measure_latency.py), of one evaluation step.
Identity blocks are left out of the layout that is to be trained.
"""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of a par_supernet")
    parser.add_argument("--data", metavar="DIR", help="prepared data (default: the one it was trained on)")
    parser.add_argument("--how", choices=["argmax", "best", "budget"], default="argmax", help="default: %(default)s")
    parser.add_argument(
        "--samples", type=int, default=8, metavar="K", help="layouts of --how best (default: %(default)s)"
    )
    parser.add_argument("--subset", default="valid", help="split that --how best reads (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="lanes of it (default: %(default)s)")
    parser.add_argument("--max-batches", type=int, metavar="N", help="read no more of it (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (default: %(default)s)")
    parser.add_argument("--budget", type=float, help="cost of --how budget, in GFLOP or ms; with --relative a share")
    parser.add_argument("--relative", action="store_true", help="--budget is a share of the interleaved layout's cost")
    parser.add_argument("--latency-table", metavar="FILE", help="measured costs (default: GFLOP)")
    parser.add_argument("--tokens", type=int, help="tokens of an evaluation step (default: as trained)")
    parser.add_argument("--memory", type=int, help="remembered tokens of it (default: --mem-len)")
    parser.add_argument("--batch", type=int, default=1, help="rows of the measured step (default: %(default)s)")
    parser.add_argument("--no-measure", action="store_true", help="do not measure the derived net")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--save-dir", help="of the training that is printed (default: beside the search's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is printed here, too")
    return parser


def check(args: argparse.Namespace) -> None:
    check_least(args, 1, "samples", "batch_size", "max_batches", "tokens", "batch", "threads")
    check_least(args, 0, "memory")
    if (args.how == "budget") != (args.budget is not None):
        raise UserError("--budget is for --how budget, which needs it")
    if args.budget is not None and not args.budget >= 0:
        raise UserError(f"--budget {args.budget}: must not be negative")
    if args.relative and args.budget is None:
        raise UserError("--relative is for --budget")
    if not args.checkpoint.is_file():
        raise UserError(f"{args.checkpoint}: no such file")
    check_output(args.json, "--json", args.checkpoint)


def load(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(model, plain configuration, task)."""
    logging.disable(logging.INFO)
    from fairseq import checkpoint_utils

    import par_search  # noqa: F401
    from fairseq_efficient.bench.machine import check_device
    from fairseq_efficient.checkpoints import read_checkpoint

    if not args.no_measure:
        check_device(args.device)
    overrides = {"data": args.data} if args.data else {}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(args.checkpoint)], overrides)
    model = models[0].eval()
    if not hasattr(getattr(model, "decoder", None), "alpha"):
        raise UserError(f"{args.checkpoint}: not a par_supernet")
    cfg = read_checkpoint(str(args.checkpoint))["cfg"]
    if args.data:
        cfg["task"]["data"] = args.data
    return model, cfg, task


def choose(args: argparse.Namespace, model: Any, task: Any, costs: Any, found: dict[str, Any]) -> str:
    """The layout, identity blocks included; what was tried goes into ``found``."""
    import torch
    from fairseq import utils

    from par_search import derive

    probabilities = model.decoder.probabilities().detach()
    if args.how == "argmax":
        return derive.most_probable(probabilities)
    if args.how == "budget":
        budget = args.budget
        if args.relative:
            budget *= costs.of_layout(("af" * len(probabilities))[: len(probabilities)])
        found["budget"] = budget
        return derive.within_budget(probabilities, costs, budget)
    torch.manual_seed(args.seed)
    if not Path(utils.split_paths(task.args.data)[0], f"{args.subset}.idx").exists():
        raise UserError(f"--subset {args.subset}: no such split in {task.args.data}")
    task.load_dataset(args.subset)
    tried = {}
    for layout in derive.draw(probabilities, args.samples):
        bits = derive.bits_per_token(model, task, args.subset, layout, args.batch_size, args.max_batches)
        tried[layout] = bits
        print(f"{layout}  {bits:.4f} bits, {costs.of_layout(layout):.4g} {costs.unit}", flush=True)
    found["tried"] = [{"layout": layout, "bits": bits} for layout, bits in tried.items()]
    return min(tried, key=lambda layout: tried[layout])


def table(probabilities: Sequence[Sequence[float]], layout: str) -> str:
    lines = ["block  attention  feed-forward  identity  chosen"]
    for number, (row, kind) in enumerate(zip(probabilities, layout, strict=True)):
        lines.append(f"{number:5}  {row[0]:9.4f}  {row[1]:12.4f}  {row[2]:8.4f}  {kind:>6}")
    return "\n".join(lines)


def measured(
    args: argparse.Namespace, model: Any, task: Any, layouts: Sequence[str], shape: Any
) -> tuple[Any, list[float]]:
    """Costs of blocks in milliseconds, and milliseconds of nets of these layouts."""
    import torch

    from par_search.costs import Costs
    from par_search.latency import measure_kinds

    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    options = model.decoder.options
    blocks, rest, whole = measure_kinds(task.source_dictionary, options, shape, device, runs=5, layouts=layouts)
    attention, feed_forward, identity = blocks
    return Costs((attention, feed_forward, identity), "ms", rest), whole


def main() -> None:
    args = get_parser().parse_args()
    check(args)
    model, cfg, task = load(args)
    from par_search.costs import Shape, flop_costs, read_table
    from par_search.derive import without_identity
    from par_search.retrain import retrain_command

    decoder, options = model.decoder, model.decoder.options
    tokens = args.tokens or options.tokens or 1
    shape = Shape.of(options.block, tokens, options.mem_len if args.memory is None else args.memory)
    costs = read_table(args.latency_table, shape, "--") if args.latency_table else flop_costs(shape)
    found: dict[str, Any] = {"checkpoint": args.checkpoint.name, "how": args.how}
    chosen = choose(args, model, task, costs, found)
    layout = without_identity(chosen)
    probabilities = decoder.probabilities().detach()
    print(table(probabilities.tolist(), chosen))
    undecided = int((probabilities == probabilities.max(-1, keepdim=True).values).sum(-1).gt(1).sum())
    if undecided:
        print(f"note: {undecided} blocks have no kind that is more probable than the others: the search has not "
              "decided (were there updates of the architecture?)")  # fmt: skip
    interleaved = ("af" * len(chosen))[: len(chosen)]
    expected = costs.rest + costs.expected(probabilities).item()
    found.update(layout=layout, with_identity=chosen, probabilities=probabilities.tolist(), unit=costs.unit,
                 expected=expected, cost=costs.of_layout(layout), interleaved=costs.of_layout(interleaved))  # fmt: skip
    print(f"layout: {layout}")
    print(f"blocks: {len(layout)} of {len(chosen)}, {layout.count('a')} of them attention")
    print(f"cost, {tokens} tokens after {shape.memory}: {found['cost']:.4g} {costs.unit}; expected of the supernet "
          f"{expected:.4g}; interleaved {found['interleaved']:.4g}")  # fmt: skip
    if not args.no_measure:
        from dataclasses import replace

        clock, (own, other) = measured(args, model, task, [layout, interleaved], replace(shape, batch=args.batch))
        predicted = clock.of_layout(layout)
        found.update(measured_ms=own, predicted_ms=predicted, interleaved_ms=other)
        print(f"measured at batch {args.batch}: {own:.2f} ms, predicted {predicted:.2f}; expected of the supernet "
              f"{clock.rest + clock.expected(probabilities).item():.2f}; interleaved {other:.2f}")  # fmt: skip
    folder = args.save_dir or f"{args.checkpoint.parent}-{layout}"
    found["command"] = retrain_command(cfg, layout, folder)
    print(f"train it:\n{found['command']}")
    if args.json is not None:
        write_json(args.json, found, "--json")


if __name__ == "__main__":
    run_main(main)
