"""Draw validation bits over updates and over time: picture.py RESULTS.json PICTURE.png."""

from pathlib import Path
from typing import Any

from experiment_parts import pictures
from experiment_parts.pictures import GREY, averaged, label, of_experiment

STYLE = {  # model -> colour, marker
    "vanilla": ("#1f2933", "o"), "fixed2": ("#9fb3c8", "s"), "fixed3": ("#7b9ebd", "^"), "fixed4": ("#486581", "D"),
    "whitespaces": ("#d1495b", "v"), "unigram": ("#66a182", "P"), "entropy": ("#edae49", "X"),
    "gumbel": ("#8d6a9f", "*"),
}  # fmt: skip


def panel(axes: Any, curves: dict[str, Any], over: str, title: str, top: float) -> None:
    """One axes; ``over``: updates or minutes."""
    from matplotlib.ticker import MaxNLocator

    for model, (updates, seconds, bits) in curves.items():
        color, marker = STYLE[model]
        x = updates if over == "updates" else [second / 60 for second in seconds]
        axes.plot(x, bits, color=color, marker=marker, ms=4, lw=2.2 if model == "vanilla" else 1.6, label=model)
    label(axes, title, over if over == "updates" else "minutes of updates")
    axes.set_ylim(top=top)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))


def draw(document: dict[str, Any], path: Path) -> None:
    def row(panels: Any, name: str) -> None:
        about, curves = document["experiments"][name], of_experiment(document, "curves", name)
        title = f"{about['data']['name']}, layers {about['settings']['layers']}, width {about['settings']['dim']}"
        of = {
            setting: averaged([c for c in curves if c["setting"] == setting], "updates", "seconds", "valid_bpc")
            for setting in ("updates", "time")
        }
        late = [bits for found in of.values() for one in found.values() for bits in one[2][len(one[2]) // 5 :]]
        top = max(late, default=1) + 0.1 * (max(late, default=1) - min(late, default=0)) + 1e-3  # not the first falls
        panel(panels[0], of["updates"], "updates", f"{title}\nequal updates", top)
        panel(panels[1], of["updates"], "minutes", "the same over time", top)
        if len(of["time"]) > 1:
            panel(panels[2], of["time"], "minutes", "trained anew for equal time", top)
        else:
            panels[2].set_visible(False)
        panels[0].set_ylabel("validation bits per character", color=GREY)
        panels[0].legend(frameon=False, fontsize=8)

    names = [name for name in document["experiments"] if of_experiment(document, "curves", name)]
    pictures.draw(path, names, row, sharey="row")


if __name__ == "__main__":
    pictures.main(draw)
