"""What the page of an inference has of its own by the type of its model: classes, a number, or a hazard.

A `Told` is made from the model's description (model.json) and speaks of rows of the table of predictions. What all
pages have stands in `infer_results`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bfp.metrics.measures import MEASURES
from bfp.reports.blocks import Cell, Histogram
from bfp.reports.numbers import interval_text, number_text

Row = dict[str, Any]

RESEARCH = "For research; not a medical device."
APART = 0.2  # standard deviation over the fold heads: of a probability, or of 100 percentiles


class Told(Protocol):
    """learned: what the model predicts, in words. columns: of the table of predictions, note: below it, after a space
    where there is one; limits: a paragraph; spread: what it is the spread of."""

    @property
    def learned(self) -> str: ...

    @property
    def columns(self) -> list[str]: ...

    @property
    def note(self) -> str: ...

    @property
    def limits(self) -> str: ...

    @property
    def spread(self) -> str: ...

    def methods(self, model: str) -> str:
        """What was done, as a sentence. model: its name."""
        ...

    def cells(self, row: Row) -> list[Cell]:
        """Under `columns`."""
        ...

    def brief(self, row: Row) -> str:
        """What was predicted, for a title."""
        ...

    def figures(self, rows: Sequence[Row]) -> dict[str, Cell]: ...

    def apart(self, row: Row) -> bool:
        """Whether the heads of the folds say other things."""
        ...

    def histograms(self, rows: Sequence[Row]) -> list[Histogram]: ...


def told_by(model: dict[str, Any]) -> Told:
    """model: its model.json, of a classification, regression or survival."""
    match model["type"]:
        case "classification":
            return ClassesTold(model["target"], model["classes"])
        case "regression":
            margin = model["margin"]
            return NumbersTold(
                model["target"], model["trained_from"], model["trained_to"], margin and margin["half_width"]
            )
        case _:
            return HazardsTold(model["target"])


def judged_by(model: dict[str, Any]) -> tuple[str, Cell]:
    """What the model's cross-validation came to: the figure's name, and its value with its interval."""
    first, figures = MEASURES[model["type"]].first, model["facts"]["figures"]
    ends = (figures.get(f"{first.name}{end}") for end in ("", "_low", "_high"))
    return f"cross-validated {first.label}", interval_text(*ends)


@dataclass(frozen=True, slots=True)
class ClassesTold:
    """A `Told`."""

    target: str
    classes: Sequence[str]

    @property
    def learned(self) -> str:
        return f"{self.target}: {', '.join(self.classes)}"

    @property
    def columns(self) -> list[str]:
        if len(self.classes) == 2:
            return ["predicted", f"P({self.classes[1]})", "recalibrated", "positive at 90 %"]
        return ["predicted", *(f"P({name})" for name in self.classes)]

    @property
    def note(self) -> str:
        if len(self.classes) != 2:
            return " Predicted: the class with the largest probability."
        return (
            " Three ways to call a session, which may differ: predicted is the class with the larger probability, as "
            "the model's cross-validation counted it; recalibrated is what comes nearer to how often it is so, where "
            f"{self.classes[1]} is as frequent as in training; positive at 90 % is {self.classes[1]} by the threshold "
            "that 90 % of the others stayed below in training. Choose one before you look."
        )

    @property
    def limits(self) -> str:
        return (
            f"{RESEARCH} The probabilities put sessions in an order; 0.9 does not mean that nine of ten are of that "
            "class. The recalibrated ones (of more than two classes: in predictions.parquet) come near to that, where "
            "the classes are as frequent and the scans as alike as in the model's training. The spread tells how far "
            "the heads of the folds are apart; it is no interval around the probability."
        )

    def methods(self, model: str) -> str:
        return f"Sessions were classified by {self.target} ({', '.join(self.classes)}) with the model {model}."

    @property
    def spread(self) -> str:
        return "the predicted class's probability"

    def cells(self, row: Row) -> list[Cell]:
        if len(self.classes) == 2:
            second = self.classes[1]
            called = {True: "yes", False: "no", None: "not known"}[row["positive_at_90_specificity"]]
            return [row["predicted"], row[f"prob_{second}"], row[f"recalibrated_{second}"], called]
        return [row["predicted"], *(row[f"prob_{name}"] for name in self.classes)]

    def brief(self, row: Row) -> str:
        return f"{row['predicted']} {row['prob_' + row['predicted']]:.2f}"

    def figures(self, rows: Sequence[Row]) -> dict[str, Cell]:
        predicted = Counter(row["predicted"] for row in rows)
        return {f"predicted_{name}": predicted[name] for name in self.classes}

    def apart(self, row: Row) -> bool:
        return bool((row["spread"] or 0.0) > APART)

    def histograms(self, rows: Sequence[Row]) -> list[Histogram]:
        return [
            Histogram(
                title=f"Probability of {name}",
                values=[row[f"prob_{name}"] for row in rows],
                x_label=f"probability of {name}",
                y_label="sessions",
            )
            for name in (self.classes[1:] if len(self.classes) == 2 else self.classes)
        ]


@dataclass(frozen=True, slots=True)
class NumbersTold:
    """A `Told`. trained_from, trained_to, half_width: as of `bfp.models.outputs.Numbers`."""

    target: str
    trained_from: float
    trained_to: float
    half_width: float | None

    @property
    def learned(self) -> str:
        return f"{self.target}, {self.trained_from:g} to {self.trained_to:g}"

    @property
    def columns(self) -> list[str]:
        return [self.target, *(["low", "high"] if self.half_width is not None else [])]

    @property
    def note(self) -> str:
        return " Low, high: the ends of the 90 % interval." if self.half_width is not None else ""

    @property
    def limits(self) -> str:
        interval = (
            "The interval around it is as wide as 90 % of the model's held-out training subjects needed, and as wide "
            "for everybody: among people or scans that are others it holds fewer, and where the errors differ (at both "
            "ends of the range they do) it is too narrow for some and too wide for others."
            if self.half_width is not None
            else "There is no interval around it: the model had fewer than the 9 training subjects that one needs."
        )
        return (
            f"{RESEARCH} A number that is predicted lies nearer to the mean of the training than the true one "
            f"(regression to the mean): the difference between them is no measure of a person before that is taken "
            f"away. {interval} The model learned from {self.target} of {self.trained_from:g} to {self.trained_to:g}; "
            "what it says outside of that is an extrapolation, and the row has a warning. The spread tells how far the "
            "heads of the folds are apart, and not how far off the number may be."
        )

    def methods(self, model: str) -> str:
        width = (
            f" An interval of {number_text(self.half_width)} to both sides of it follows from the errors of the "
            "model's cross-validation (90 %; conformal prediction, Lei et al., 2018; each subject weighing 1, Lee et "
            "al., 2023)."
            if self.half_width is not None
            else ""
        )
        return f"Of each session the {self.target} was predicted with the model {model}.{width}"

    @property
    def spread(self) -> str:
        return "the number"

    def cells(self, row: Row) -> list[Cell]:
        return [row["predicted"], *([row["low"], row["high"]] if self.half_width is not None else [])]

    def brief(self, row: Row) -> str:
        return f"{self.target} {number_text(row['predicted'])}"

    def figures(self, rows: Sequence[Row]) -> dict[str, Cell]:
        return {
            "predicted_mean": sum(row["predicted"] for row in rows) / len(rows) if rows else None,
            "outside_range": sum(not self.trained_from <= row["predicted"] <= self.trained_to for row in rows),
        }

    def apart(self, row: Row) -> bool:
        """By more than half of what the interval allows to one side."""
        return self.half_width is not None and (row["spread"] or 0.0) > self.half_width / 2

    def histograms(self, rows: Sequence[Row]) -> list[Histogram]:
        return [
            Histogram(
                title=f"Predicted {self.target}",
                values=[row["predicted"] for row in rows],
                x_label=f"{self.target}, predicted",
                y_label="sessions",
                flag_above=self.trained_to,
                flag_below=self.trained_from,
                note="Between the dashed lines lie the numbers that the model learned from.",
            )
        ]


@dataclass(frozen=True, slots=True)
class HazardsTold:
    """A `Told`."""

    target: str

    @property
    def learned(self) -> str:
        return f"{self.target}, as a relative hazard"

    @property
    def columns(self) -> list[str]:
        return ["log hazard", "percentile"]

    @property
    def note(self) -> str:
        return " Percentile: of the hazard, among the held-out training sessions."

    @property
    def limits(self) -> str:
        return (
            f"{RESEARCH} What is predicted is the logarithm of a relative hazard: it puts sessions in an order, and "
            "tells neither a time nor how likely the event is. The percentile is its place among the held-out training "
            "sessions, each judged by the head of its fold; among people or scans that are others it says less. The "
            "spread tells how far the heads of the folds are apart, in percentiles; it is no interval."
        )

    def methods(self, model: str) -> str:
        return (
            f"Of each session the logarithm of a relative hazard was predicted ({self.target}) with the model {model}, "
            "and put among those of its held-out training sessions."
        )

    @property
    def spread(self) -> str:
        return "the percentile"

    def cells(self, row: Row) -> list[Cell]:
        return [row["log_hazard"], row["percentile"]]

    def brief(self, row: Row) -> str:
        return f"percentile {row['percentile']:.0f}"

    def figures(self, rows: Sequence[Row]) -> dict[str, Cell]:
        return {"above_training_median": sum(row["percentile"] > 50 for row in rows)}

    def apart(self, row: Row) -> bool:
        return bool((row["spread"] or 0.0) > 100 * APART)

    def histograms(self, rows: Sequence[Row]) -> list[Histogram]:
        return [
            Histogram(
                title="Percentiles among the training sessions",
                values=[row["percentile"] for row in rows],
                x_label="percentile of the hazard",
                y_label="sessions",
                note="Sessions like those of the training spread about evenly from 0 to 100, more so the more there "
                "were.",
            )
        ]
