"""Stages of a quality run of attention spans: evaluate, time, recompute. Done ones are skipped."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment_parts import runs as experiment_runs
from experiment_parts.adaptive_span.plan import Plan, Run
from experiment_parts.runs import eval_told, keep_step_seconds, score, split_size, step_seconds, validated
from experiment_parts.stages import StageFailed, read_json, run, say
from fairseq_efficient.report.eval_log import Evaluation, read_evaluation

FOLDER = Path(__file__).resolve().parent
ROUNDING = 5e-5  # of what fairseq-eval-lm prints
NOISE = {"fp32": 5e-5, "bf16": 2e-3}  # blocks of another length are summed in another order


def evaluate(one: Run) -> None:
    """fairseq-eval-lm on the whole split; StageFailed unless each of its tokens but the first was scored once."""
    plan = one.plan
    flags = ["--task", "segment_lm", "--gen-subset", plan.subset, "--batch-size", str(plan.args.batch_size)]
    flags += ["--log-format", "none", *plan.workers]
    score(one, "eval", "eval-lm", flags, eval_log(one), f"on {plan.subset}", eval_told)
    scored, wanted = evaluation(one).tokens, split_size(plan.data / plan.subset)[1] - 1
    if scored != wanted:
        raise StageFailed(f"{one.name}: {scored:,} tokens were scored, but {plan.subset} has {wanted:,}")


def eval_log(one: Run) -> Path:
    return one.folder / f"eval-{one.plan.subset}.log"


def evaluation(one: Run) -> Evaluation:
    return read_evaluation(eval_log(one))


# --- time -------------------------------------------------------------------------------------------------------------


def time_updates(runs: Sequence[Run]) -> None:
    """Time more updates of each trained model, in turns, with the spans that it has and full caches; each once."""
    plan = runs[0].plan
    known = step_seconds(plan.args.out)
    left = [one for one in runs if one.name not in known]
    if not left or not plan.args.time_updates:
        return
    skip = 1 + -(-plan.longest // plan.args.tokens_per_sample)  # until caches are full
    still = ["--lr", "1e-12"]  # spans stay where they are
    found = experiment_runs.time_updates(left, skip + plan.args.time_updates, skip, still)
    keep_step_seconds(plan.args.out, found)


# --- bits a second time -----------------------------------------------------------------------------------------------


def check_bits(plan: Plan, runs: Sequence[Run]) -> dict[str, Any] | None:
    """Bits of a model by fairseq-validate, and added up from its weights and the tokens alone, in blocks of another
    length; StageFailed if they differ."""
    one = next((one for one in runs if one.model == plan.args.check), None)
    if one is None:
        return None
    log = one.folder / "validate.log"
    flags = ["--task", "segment_lm", "--valid-subset", plan.subset, "--batch-size", str(plan.args.batch_size)]
    flags += ["--log-format", "json", *plan.workers]
    score(one, "validate", "validate", flags, log, f"on {plan.subset}", listed=False)
    path = one.folder / "check.json"
    newest = max(known.stat().st_mtime for known in (one.checkpoint, log))
    if not path.exists() or path.stat().st_mtime < newest:
        say(f"{one.name}: adding up bits from the weights")
        block = str(plan.args.tokens_per_sample * 5 // 4 + 1)
        command = [sys.executable, str(FOLDER / "check.py"), str(one.checkpoint), str(plan.data)]
        run([*command, plan.subset, block, str(path)], path.with_suffix(".log"), env=one.env)
    found, reported = read_json(path), evaluation(one)
    checked = {
        "model": one.model, "seed": one.seed, "bits": found["bits"], "reported": reported.bits,
        "validated": validated(log, plan.subset)["bpc"], "tokens": found["tokens"],
    }  # fmt: skip
    noise = ROUNDING + NOISE[plan.args.precision]
    others = (checked["reported"], checked["validated"])
    if found["tokens"] != reported.tokens or any(abs(found["bits"] - bits) > noise for bits in others):
        raise StageFailed(f"{one.name}: bits and tokens of one split disagree: {checked}, {reported.tokens} reported")
    say(f"{one.name}: {found['bits']:.5f} bits from the weights, {reported.bits:.4f} by fairseq-eval-lm, "
        f"{checked['validated']:.4f} by fairseq-validate")  # fmt: skip
    return checked
