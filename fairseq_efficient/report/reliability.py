"""What tests/reliability measured, as the table of docs/reliability.md."""

from collections.abc import Mapping
from typing import Any

from fairseq_efficient.bench.machine import describe


def section(results: Mapping[str, Any] | None) -> str:
    """Markdown; ``results`` is docs/results/reliability.json, None if there is none yet."""
    if results is None:
        return "\nNot measured yet: `bash scripts/run_tests.sh --full` writes the figures.\n"
    tests, versions = results["tests"], results["versions"]
    counts = f"{tests.get('passed', 0):,} tests passed, {tests.get('skipped', 0):,} skipped"
    place = f"{describe(results['machine'])}; torch {versions.get('torch', '?')}; commit {str(results['commit'])[:8]}"
    about = f"{counts}, in {results['minutes']:.0f} minutes ({place}, {results['date'][:10]})."
    lines = ["", about, "", "| | measured |", "|---|---|"]
    for rule, found in results["figures"].items():
        lines.append(f"| {rule} | " + "; ".join(f"{name}: {_shown(value)}" for name, value in found.items()) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
