"""Stages of a quality run of layouts: cutoffs, search, evaluate, time, measure. Done ones are skipped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment_parts import runs as experiment_runs
from experiment_parts.par_search.plan import ORIGINAL, Plan, Run
from experiment_parts.runs import eval_told, keep_step_seconds, once, score, split_size, step_seconds
from experiment_parts.stages import Record, StageFailed, read_json, run, say, script
from fairseq_efficient.errors import UserError
from fairseq_efficient.files import write_text
from fairseq_efficient.report.eval_log import Evaluation, read_evaluation

CACHES = ("hidden", "keys")
BATCHES = (1, 32)


def cutoffs(plan: Plan) -> None:
    """The cheapest cutoffs of the adaptive softmax, once."""
    path = Path(plan.args.out, "cutoffs.txt")
    if plan.args.cutoffs != "optimal" or path.exists():
        return
    command = script("optimal_cutoffs.py", plan.data / "dict.txt")
    log = path.with_suffix(".log")
    flags = ["--clusters", str(plan.args.clusters), "--dim", str(plan.args.dim), "--cost", "matmul"]  # as published
    run([*command, *flags], log, env=plan.env)
    found = [line for line in log.read_text(encoding="utf-8").splitlines() if line.replace(",", "").isdigit()]
    if len(found) != 1:
        raise StageFailed(f"scripts/optimal_cutoffs.py found no cutoffs; see {log}")
    write_text(path, found[0] + "\n")
    say(f"cutoffs of the adaptive softmax: {found[0]}")


def search(plan: Plan, seed: int) -> None:
    """Search a layout by scripts/search_layout.py, which goes on where it stopped."""
    search_layout(plan.search_folder(seed), seed, plan.search_words, plan.args.derive, plan.fingerprint, plan.env)
    say(f"search, seed {seed}: {plan.found(seed)}")


def search_layout(
    folder: Path, seed: int, words: Sequence[str], derive: str, fingerprint: dict[str, Any], env: dict[str, str]
) -> None:
    """Search with ``words`` for fairseq-train into ``folder``, whose name is seedN; a search that is done is skipped.

    Args:
        derive: flags of derive_layout.py. fingerprint: what tells the data from others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "search.json"
    settings = {"words": list(words), "derive": derive, "data": fingerprint}
    record = Record.load(path) or Record(settings)
    if record.settings != settings:
        raise UserError(f"{folder}: was searched with other flags or data; give another --out")
    if record.done:
        return say(f"search, seed {seed}: done already")
    say(f"search, seed {seed}: {words[words.index('--max-update') + 1]} updates")
    command = script("search_layout.py", folder.parent, "--seeds", seed)

    def show(line: str) -> str | None:
        wanted = line.startswith(f"  seed {seed}: ") or line.split()[:1] == [str(seed)]
        return f"  {line.strip()}" if wanted else None

    command += [f"--derive=--no-measure {derive}".strip(), "--", *words]
    run(command, folder / "search.log", show, env, append=True, record=record, record_file=path)
    record.done = True
    record.save(path)


def time_updates(plan: Plan, runs: Sequence[Run]) -> None:
    """Time updates of all layouts, and of the original, in turns; each once."""
    known = step_seconds(plan.args.out)
    left = {what(one): one for one in reversed(runs) if what(one) not in known}
    if left:
        found = experiment_runs.time_updates(list(left.values()), plan.args.time_updates)
        keep_step_seconds(plan.args.out, {name: found[one.name] for name, one in left.items()})


def what(one: Run) -> str:
    """What a step's time depends on."""
    return one.layout or one.model


def eval_flags(plan: Plan, subset: str) -> list[str]:
    args = plan.args
    return [
        "--task", "segment_lm", "--gen-subset", subset, "--tokens-per-sample", str(args.eval_tokens),
        "--eval-mem-len", str(args.eval_mem_len), "--batch-size", str(args.batch_size), "--log-format", "none",
        *plan.workers,
    ]  # fmt: skip


def evaluate(one: Run) -> None:
    """fairseq-eval-lm on the whole splits; StageFailed unless each token but a split's first was scored once.

    Of the original's recipe with its own lengths, as the mixture that it trained and as the most probable layout.
    """
    for subset in one.plan.subsets:
        flags = eval_flags(one.plan, subset)
        name = "eval" if subset == one.plan.subset else f"eval-{subset}"
        if one.model == ORIGINAL:
            lengths = ["--tokens-per-sample", "32", "--eval-mem-len", "16"]
            flags += lengths
            argmax = [*flags, "--model-overrides", "{'supernet_eval': 'argmax'}"]
            said = f"on {subset}, most probable layout"
            score(one, f"{name}-argmax", "eval-lm", argmax, eval_log(one, subset, "-argmax"), said, eval_told, False)
        listed = subset == one.plan.subset
        score(one, name, "eval-lm", flags, eval_log(one, subset), f"on {subset}", eval_told, listed)
        scored, wanted = evaluation(one, subset).tokens, split_size(one.plan.data / subset)[1] - 1
        if scored != wanted:
            raise StageFailed(f"{one.name}: {scored:,} tokens were scored, but {subset} has {wanted:,}")


def eval_log(one: Run, subset: str, what: str = "") -> Path:
    return one.folder / f"eval{what}-{subset}.log"


def evaluation(one: Run, subset: str, what: str = "") -> Evaluation:
    return read_evaluation(eval_log(one, subset, what))


def measure(plan: Plan, runs: Sequence[Run]) -> None:
    """Time evaluation steps of all layouts in turns: batches of 1 and 32, memory as hidden states and as keys."""
    layouts = list(dict.fromkeys(one.layout for one in runs if one.layout))
    if not layouts:
        return
    args, known = plan.args, next(one for one in runs if one.layout)
    for batch in BATCHES:
        for cache in CACHES:
            path = latency_file(plan, batch, cache)
            flags = ["--layouts", ",".join(layouts), "--tokens", str(args.eval_tokens), "--batch", str(batch)]
            flags += ["--memory", str(args.eval_mem_len), "--cache-memory", cache, "--device", args.device]
            flags += ["--threads", str(args.threads), "--runs", str(args.latency_runs)]
            command = script("measure_latency.py", path, "--checkpoint", known.checkpoint, *flags)
            stage, settings = path.with_suffix(".stage.json"), {"flags": flags, "sizes": plan.sizes}
            said = f"measuring {len(layouts)} layouts, batch {batch}, memory as {cache}"
            once(stage, settings, command, path.with_suffix(".log"), said, env=plan.env)


def latency_file(plan: Plan, batch: int, cache: str) -> Path:
    return Path(plan.args.out, f"latency-{cache}-batch{batch}.json")


def latencies(plan: Plan, layout: str) -> dict[str, float]:
    """``latency_ms`` and ``predicted_ms`` of a layout by batch and cache, as far as they were measured."""
    found = {}
    for batch in BATCHES:
        for cache in CACHES:
            path = latency_file(plan, batch, cache)
            nets: dict[str, Any] = read_json(path)["nets"] if path.exists() else {}
            for name, value in nets.get(layout, {}).items():
                found[f"{name}_{cache}_batch{batch}"] = float(value)
    return found
