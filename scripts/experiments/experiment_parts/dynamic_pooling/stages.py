"""Stages of a quality run of dynamic pooling: evaluate, validate, time, recompute. Done ones are skipped."""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiment_parts import runs as experiment_runs
from experiment_parts.dynamic_pooling.plan import Plan, Run
from experiment_parts.runs import eval_told, score, split_size, validated
from experiment_parts.stages import StageFailed, read_json, read_training_log, run, say
from fairseq_efficient.errors import UserError
from fairseq_efficient.files import write_json
from fairseq_efficient.report.eval_log import read_evaluation

FOLDER = Path(__file__).resolve().parent


def _score(one: Run, name: str, tool: str, flags: list[str], log: Path, listed: bool = True) -> None:
    """Run a tool over the trained model once."""
    said = f"on {one.plan.subset}" + (", sampled" if "sampled" in name else "")
    score(one, name, tool, flags, log, said, eval_told, listed)


def eval_flags(plan: Plan) -> list[str]:
    args = plan.args
    tokens = str(max(args.batch_size * args.tokens_per_sample, 36_000))  # in a batch; fairseq's own limit is 36,000
    return [
        "--task", "dynamic_pooling_lm", "--gen-subset", plan.subset, "--tokens-per-sample", str(args.tokens_per_sample),
        "--context-window", str(plan.context), "--batch-size", str(args.batch_size), "--max-tokens", tokens,
        "--log-format", "none", *plan.workers,
    ]  # fmt: skip


def evaluate(one: Run) -> None:
    """fairseq-eval-lm on the whole split; StageFailed unless each of its tokens was scored once."""
    _score(one, "eval", "eval-lm", eval_flags(one.plan), eval_log(one))
    scored, wanted = read_evaluation(eval_log(one)).tokens, corpus_tokens(one.plan)
    if scored != wanted:
        raise StageFailed(f"{one.name}: {scored:,} characters were scored, but {one.plan.subset} has {wanted:,}")

    if one.model == "gumbel":
        flags = [*eval_flags(one.plan), "--model-overrides", "{'gumbel_eval': 'sampled'}"]
        _score(one, "eval-sampled", "eval-lm", flags, sampled_log(one), listed=False)


def eval_log(one: Run) -> Path:
    return one.folder / f"eval-{one.plan.subset}.log"


def sampled_log(one: Run) -> Path:
    """The same with boundaries drawn as in training, which is how the original evaluates gumbel."""
    return one.folder / f"eval-sampled-{one.plan.subset}.log"


def corpus_tokens(plan: Plan) -> int:
    """Tokens of the scored split: its characters and one end for each document. StageFailed if the files disagree."""
    documents, tokens = split_size(plan.data / plan.subset)
    if plan.prepared:
        split, options = plan.prepared["splits"][plan.subset], plan.prepared["options"]
        characters = split["bytes" if options["symbols"] == "bytes" else "characters"]
        characters += documents if options["eos"] else 0
        if characters != tokens:
            raise StageFailed(f"{plan.data}: {plan.subset} holds {tokens:,} tokens of {characters:,} characters")
    return tokens


def validate(one: Run) -> None:
    """fairseq-validate on the same split: what boundaries do there (and bits of windows without context)."""
    plan = one.plan
    flags = ["--task", "dynamic_pooling_lm", "--valid-subset", plan.subset, "--batch-size", str(plan.args.batch_size)]
    flags += ["--required-batch-size-multiple", "1", "--log-format", "json", *plan.workers]
    _score(one, "validate", "validate", flags, one.folder / "validate.log")


def validation(one: Run) -> dict[str, float]:
    """The numbers of :func:`validate`, without their prefix."""
    return validated(one.folder / "validate.log", one.plan.subset)


def check_bits(one: Run) -> dict[str, Any]:
    """Bits of a run, added up here from the log-probability of each character; StageFailed if they differ."""
    log, path = one.folder / "probabilities.log", one.folder / "check.json"
    flags = [*eval_flags(one.plan), "--output-word-probs"]
    _score(one, "probabilities", "eval-lm", flags, log, listed=False)
    reported = read_evaluation(eval_log(one))
    command = [sys.executable, str(FOLDER / "check.py"), str(log), str(one.plan.data)]
    run([*command, one.plan.subset, str(path)], path.with_suffix(".log"), env=one.plan.env)
    found: dict[str, Any] = read_json(path)
    same_text = found["text"] and found["tokens"] == reported.tokens
    if not same_text or abs(found["bits"] - reported.bits) > 1e-4:
        raise StageFailed(f"{one.name}: fairseq-eval-lm says {reported.bits} bits, its log-probabilities say {found}")
    say(f"{one.name}: {found['bits']:.5f} bits by the log-probabilities, {reported.bits:.4f} as reported")
    return {
        "model": one.model,
        "seed": one.seed,
        "bits": found["bits"],
        "reported": reported.bits,
        "tokens": found["tokens"],
    }


def step_seconds(plan: Plan) -> dict[str, float]:
    """Seconds per update of each model that :func:`time_updates` or :func:`timed_updates` settled."""
    path = Path(plan.args.out, "equal_time.json")
    kept = read_json(path) if path.exists() else {}
    if kept and kept["vanilla_updates"] != plan.args.updates:
        raise UserError(f"{path}: is of {kept['vanilla_updates']} updates; give another --out")
    return dict(kept.get("step_seconds", {}))


def _keep_step_seconds(plan: Plan, steps: dict[str, float]) -> None:
    write_json(Path(plan.args.out, "equal_time.json"), {"vanilla_updates": plan.args.updates, "step_seconds": steps})


def time_updates(runs: Sequence[Run], count: int) -> None:
    """Measure anew what an update of each model takes; segments are as long as training made them."""
    steps = step_seconds(runs[0].plan)
    left = [one for one in runs if one.model not in steps]
    found = experiment_runs.time_updates(left, count)
    _keep_step_seconds(runs[0].plan, {**steps, **{one.model: found[one.name] for one in left}})


def timed_updates(plan: Plan, runs: Sequence[Run]) -> dict[str, int]:
    """How many updates of each model fit into the time of vanilla's, by the median time of an update over the seeds
    (or what :func:`time_updates` measured).

    Decided once for each model, then kept in OUT/equal_time.json: so that training can go on.
    """
    steps = step_seconds(plan)
    for model in dict.fromkeys(one.model for one in runs):
        if model not in steps:
            logs = [read_training_log(one.folder / "train.log") for one in runs if one.model == model]
            steps[model] = median(log.seconds_per_update or 0.0 for log in logs)
    if not all(steps.values()):
        raise StageFailed("--equal-time: updates are too short to be timed; train for more, or log less often")
    _keep_step_seconds(plan, steps)
    return {model: max(round(plan.args.updates * steps["vanilla"] / step), 1) for model, step in steps.items()}
