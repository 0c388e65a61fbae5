"""Models compared by quality and by the clock on one data set: what a file of results says of it.

The file holds ``sets`` (name -> facts), ``rows`` (quality: data, model, metric, value) and ``timings`` (seconds of an
engine over the same texts: data, batch, order, model, seconds, gflop). Engines ``stock`` and ``max_length`` are the
``dense`` model's weights in fairseq, padded; ``dense`` and the others are models of the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fairseq_efficient.errors import UserError
from fairseq_efficient.text.reading import parse_json

DENSE, STOCK = "dense", "stock"
LONGER = "dense-longer"  # the dense model, trained for as many more texts as skimmed ones are
LIMIT = 1.0  # points below the dense model that a faster one may be, to be called as good


class Point(NamedTuple):
    """An engine: seconds of a text, quality, name."""

    seconds: float
    quality: float
    name: str


@dataclass(frozen=True)
class SpeedQuality:
    """What is known of one data set."""

    name: str
    about: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    timings: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, document: Mapping[str, Any], name: str) -> "SpeedQuality":
        rows, timings = ([one for one in document[kind] if one["data"] == name] for kind in ("rows", "timings"))
        return cls(name, document["sets"][name], rows, timings)

    @cached_property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row["model"] for row in self.rows))

    @property
    def skimmed(self) -> list[str]:
        return [model for model in self.models if model not in (DENSE, LONGER)]

    @property
    def metric(self) -> str:
        return str(self.about["metric"])

    def values(self, model: str, metric: str) -> list[float]:
        """One for each seed."""
        return [row["value"] for row in self.rows if (row["model"], row["metric"]) == (model, metric)]

    def value(self, model: str, metric: str) -> float | None:
        found = self.values(model, metric)
        return mean(found) if found else None

    def quality(self, model: str) -> float | None:
        return self.value(model, self.metric)

    @property
    def dense(self) -> float | None:
        """Quality of the dense model; if one was trained for longer too, of the better of the two."""
        return max((one for name in (DENSE, LONGER) if (one := self.quality(name)) is not None), default=None)

    def loss(self, model: str) -> float | None:
        """Points below :attr:`dense`."""
        ours, dense = self.quality(model), self.dense
        return None if ours is None or dense is None else dense - ours

    @property
    def places(self) -> list[tuple[int, str]]:
        """Batch sizes and orders that were timed."""
        return list(dict.fromkeys((one["batch"], one["order"]) for one in self.timings))

    @property
    def headline(self) -> tuple[int, str]:
        """The largest batch, as texts come."""
        return max((batch for batch, _ in self.places), default=0), "arrival"

    def timing(self, model: str, place: tuple[int, str] | None = None) -> Mapping[str, Any] | None:
        wanted = (*(place or self.headline), model)
        return next((one for one in self.timings if (one["batch"], one["order"], one["model"]) == wanted), None)

    def faster(
        self, model: str, than: str, what: str = "seconds", place: tuple[int, str] | None = None
    ) -> float | None:
        """Times fewer seconds (or FLOPs: ``gflop``) than an engine needs."""
        ours, theirs = self.timing(model, place), self.timing(than, place)
        return None if ours is None or theirs is None else float(theirs[what] / ours[what])

    def best(self, limit: float) -> str | None:
        """The fastest skimmed model that loses at most ``limit`` points."""
        fine = [model for model in self.skimmed if (loss := self.loss(model)) is not None and loss <= limit]
        timed = {model: speed for model in fine if (speed := self.faster(model, STOCK)) is not None}
        return max(timed, key=lambda model: timed[model], default=None)

    def points(self) -> list[Point]:
        """Engines that were timed, at :attr:`headline`: fairseq and the dense model, then the skimmed ones."""
        names = [("fairseq", STOCK, DENSE), ("dense, packed", DENSE, DENSE)]
        names += [(model, model, model) for model in self.skimmed]
        placed = [(self.timing(engine), self.quality(model), name) for name, engine, model in names]
        return [
            Point(one["seconds"] / one["texts"], quality, name)
            for one, quality, name in placed
            if one is not None and quality is not None
        ]


def read_speed_quality(path: Path) -> list[SpeedQuality]:
    """Each data set of a file. UserError for a file of something else."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        found = [SpeedQuality.of(document, name) for name in document["sets"]]
        for one in found:
            one.points()
            str(one.about["title"] + one.about["metric_title"])
    except OSError as err:
        raise UserError(f"{path}: {err.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not the results of scripts/experiments/skimming_classification.py") from None
    return found
