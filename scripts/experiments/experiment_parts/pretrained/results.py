"""What is known of the small models: numbers, floors, sizes, how they were made; those of others stay."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from try_pretrained import FLOOR

from experiment_parts.deep_pyramidion.stages import scores as rouge_scores
from experiment_parts.pretrained.page import page
from experiment_parts.pretrained.plan import LICENSE, LIMIT, LIMIT_OF_ALL, RECIPES, Plan
from experiment_parts.pretrained.stages import SUBSET, log_of, publish
from experiment_parts.rows import head_of
from experiment_parts.runs import validated
from experiment_parts.stages import ROOT, Record, StageFailed, read_json, read_training_log
from fairseq_efficient.files import write_json
from fairseq_efficient.report.eval_log import read_evaluation
from fairseq_efficient.report.span_log import read_spans
from fairseq_efficient.report.train_log import read_train_log

NAME = "pretrained"
Results = list[tuple[str, str]]  # what is measured, and the number; floors begin with FLOOR


def folders(args: Any) -> tuple[Path, Path]:
    """Where the models, and what is known of them, go."""
    results = args.results or args.out / "results"
    return (ROOT / NAME, ROOT / "docs" / "results") if args.publish else (results / NAME, results)


def write(plan: Plan) -> Path:
    """Export the model with what was measured, and put it into pretrained.json and README.md; its folder."""
    models, results = folders(plan.args)
    folder, path = models / plan.recipe.system, results / f"{NAME}.json"
    measured = NUMBERS[plan.recipe.system](plan)
    publish(plan, folder, measured)
    results.mkdir(parents=True, exist_ok=True)
    document = read_json(path) if path.exists() else {"models": {}}
    known = {**document["models"], plan.recipe.system: facts(plan, folder, measured)}
    document = {"models": {name: known[name] for name in RECIPES if name in known}}
    write_json(path, document)
    (models / "README.md").write_text(page(document), encoding="utf-8")
    check_sizes(document)
    return folder


def check_sizes(document: dict[str, Any]) -> None:
    """StageFailed for a model, or all of them, larger than what a repository should hold."""
    sizes = {name: model["bytes"] for name, model in document["models"].items()}
    for name, size in sizes.items():
        if size > LIMIT:
            raise StageFailed(f"{name}: {size:,} bytes, more than {LIMIT:,}: make it smaller")
    if sum(sizes.values()) > LIMIT_OF_ALL:
        raise StageFailed(f"all models: {sum(sizes.values()):,} bytes, more than {LIMIT_OF_ALL:,}")


def facts(plan: Plan, folder: Path, measured: Results) -> dict[str, Any]:
    """What the page says of a model."""
    runs = plan.runs()
    logs = [read_training_log(one.folder / "train.log") for one in runs]
    searched = Record.load(plan.search_folder / "search.json")
    recipe = plan.recipe
    return {
        "title": recipe.title,
        "does": recipe.does,
        "parameters": logs[-1].parameters,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "results": [list(one) for one in measured],
        "trained_on": recipe.corpus.title,
        "license": LICENSE,
        "license_of_texts": recipe.corpus.license,
        "layout": plan.layout,
        "updates": {one.model: one.updates for one in runs},
        "seconds": round(sum(log.seconds for log in logs) + (searched.seconds if searched is not None else 0), 1),
        "made": head_of(plan, logs),
    }


# --- numbers ----------------------------------------------------------------------------------------------------------


def _summaries(plan: Plan) -> Results:
    scores = rouge_scores(plan.given())

    def rouge(system: str) -> str:
        found = [scores[system][f"rouge{kind}"]["mean"] for kind in ("1", "2", "L")]
        return " / ".join(f"{value:.1f}" for value in found)

    what = f"ROUGE-1 / 2 / L, {scores['model']['pairs']:,} abstracts"
    return [
        (what, rouge("model")),
        (f"{FLOOR}the abstract's first sentence", rouge("lead")),
        (f"{FLOOR}its best sentences, by hindsight", rouge("oracle")),
    ]


def _count_models(plan: Plan, orders: Sequence[int], unit: str, show: Callable[[float], str]) -> Results:
    """Count models of some orders, and the best one."""
    models = read_json(plan.folder / "floors.json")["count_models"]
    best = min(range(len(models)), key=lambda order: float(models[order]["bits"]))
    found = []
    for order in sorted({*orders, best}):
        count = int(models[order]["numbers"])
        size = f"{count / 1e6:.1f} M numbers" if count > 1e5 else f"{count:,} numbers"
        context = f"of {order} {unit}{'s' if order > 1 else ''} before" if order else "without context"
        found.append((f"{FLOOR}count model {context}, {size}", show(models[order]["bits"])))
    return found


def _bits(plan: Plan, unit: str) -> Results:
    """Bits of a model of characters or bytes, and of what it has to beat."""
    found, floors = read_evaluation(log_of(plan.given())), read_json(plan.folder / "floors.json")
    return [
        (f"bits per {unit}, {found.tokens:,} {unit}s", f"{found.bits:.3f}"),
        (f"{FLOOR}xz -9e after the training text", f"{floors['xz_bits']:.3f}"),
        *_count_models(plan, (0, 2), unit, "{:.3f}".format),
    ]


def _letters(plan: Plan) -> Results:
    factor = validated(plan.given().folder / "validate.log", SUBSET)["shortening_factor"]
    measured, *floors = _bits(plan, "letter")
    return [measured, ("letters of a segment", f"{factor:.2f}"), *floors]


def _mails(plan: Plan) -> Results:
    found, dense = (validated(log_of(one), SUBSET) for one in (plan.given(), plan.runs()[0]))
    floors = read_json(plan.folder / "floors.json")
    return [
        (f"accuracy, {floors['texts']:,} mails", f"{found['accuracy']:.1f}%"),
        ("tokens kept, mean of the layers", f"{found['keep_ratio']:.1%}"),
        ("accuracy of the dense model that it comes from", f"{dense['accuracy']:.1f}%"),
        (f"{FLOOR}always ham", f"{floors['majority']:.1%}"),
        (f"{FLOOR}naive Bayes over the same sub-words", f"{floors['naive_bayes']:.1%}"),
    ]


def _pieces(plan: Plan) -> Results:
    found = read_evaluation(log_of(plan.given()))
    return [
        (f"perplexity, {found.tokens:,} sub-words", f"{2**found.bits:.1f}"),
        ("attention (a) and feed-forward (f) blocks", plan.layout),
        *_count_models(plan, (0, 1), "sub-word", lambda bits: f"{2**bits:.1f}"),
    ]


def _bytes(plan: Plan) -> Results:
    spans = read_spans(read_train_log(plan.runs()[-1].folder / "train.log"), "valid")
    if spans is None:
        raise StageFailed(f"{plan.folder}: no spans in the log of the training")
    measured, *floors = _bits(plan, "byte")
    said = f"{spans.last.mean():.0f} and {spans.last.max():.0f} bytes"
    return [measured, ("mean and longest span of the heads", said), *floors]


NUMBERS: dict[str, Callable[[Plan], Results]] = {
    "deep_pyramidion": _summaries,
    "dynamic_pooling": _letters,
    "skimming": _mails,
    "par_search": _pieces,
    "adaptive_span": _bytes,
}
