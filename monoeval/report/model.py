"""What a report says, as numbers and sentences: the dataclasses every format is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monoeval.metrics.components import Levels
from monoeval.metrics.error_rates import Ratio
from monoeval.metrics.paired import Interval
from monoeval.report.points import DETECTION, Point
from monoeval.suite.ledger import Row

MEAN = "mean over corruptions"


@dataclass(frozen=True)
class Column:
    """One column of a scenario's table: a level, or the mean of several."""

    label: str
    points: tuple[Point, ...]
    negative_control: bool = False
    """The labels carry no signal here: shown, but outside means and verdicts."""
    extra: bool = False
    """A corruption that was made to tune on, beside scored ones: shown, but outside means and verdicts."""

    @property
    def set_aside(self) -> bool:
        return self.negative_control or self.extra


@dataclass(frozen=True)
class Cell:
    """A mean in [0, 1], or a difference of two, with its interval; without one, `remarks` say why."""

    interval: Interval | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """An arm minus another on the same test rows and the same draws."""

    against: str
    cells: tuple[Cell, ...]
    """One for each column of the table."""
    primary: Cell
    varied: tuple[str, ...]
    """What each seed redraws, of backbone, adapter and draw (noise, shots): the interval covers these together."""
    conditional: bool
    """Whether the backbone is one and the same for every seed."""
    units: int
    fewer_errors: Ratio | None = None
    """Primary difference as a share of the other arm's errors; None where those are not above zero."""
    levels: Levels | None = None
    """How backbones, adapters and draws are crossed; None where they move together, seed by seed."""
    fixed: tuple[str, ...] = ()
    """What is drawn, but once for all units, so that the interval does not cover it."""
    adjusted_p: float | None = None
    """p of the primary difference, Holm-adjusted over the report's family; None outside of it."""


@dataclass(frozen=True)
class Comparison:
    """What an arm gains over its baseline, and over each of its controls."""

    arm: str
    baseline: Difference
    controls: tuple[Difference, ...]
    kind: str
    """The verdict in two or three words; "control" for an arm that is only there to be compared with."""
    sentence: str
    comparable: bool = True
    """Whether the study is one in which the arm could have got a verdict, however its scores came out."""
    notes: tuple[str, ...] = ()

    @property
    def is_claim(self) -> bool:
        return self.kind != "control"

    @property
    def differences(self) -> tuple[Difference, ...]:
        """From the baseline, then from each control."""
        return (self.baseline, *self.controls)


@dataclass(frozen=True)
class Curve:
    """Accuracy of one arm along a series."""

    arm: str
    series: str
    levels: tuple[float, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Value:
    """A summary measure of one arm, a share; its 95 % interval where it has one."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measure:
    """One summary measure of the arms that have it."""

    name: str
    label: str
    values: Mapping[str, Value]


def quantity(scenario: str) -> str:
    """What the tables of a scenario hold, within a sentence."""
    return {DETECTION: "AUROC", "imbalance": "balanced accuracy"}.get(scenario, "accuracy")


@dataclass(frozen=True)
class Table:
    """One scenario, or one of its protocols where they cannot be averaged."""

    scenario: str
    title: str
    slug: str
    """Its name in file names and anchors; no two tables share one."""
    columns: tuple[Column, ...]
    primary: int
    """The column that differences and verdicts are about."""
    primary_label: str
    """That column in words."""
    cells: Mapping[str, tuple[Cell, ...]]
    """Accuracy: arm → one cell for each column."""
    comparisons: tuple[Comparison, ...]
    curves: tuple[Curve, ...]
    protocols: tuple[str, ...]
    rows: int
    """Test rows of the largest test set."""
    measures: tuple[Measure, ...] = ()

    @property
    def quantity(self) -> str:
        """What its cells are shares of, within a sentence."""
        return quantity(self.scenario)


@dataclass(frozen=True)
class Summary:
    """All a report says, as numbers and sentences."""

    folder: str
    name: str
    note: str | None
    arms: tuple[str, ...]
    tables: tuple[Table, ...]
    probes: Mapping[str, str]
    """Arm → kind of its probe."""
    adapters: Mapping[str, Mapping[str, float]]
    """Arm → measures of its adapter's fit, averaged over seeds."""
    units: int
    notes: tuple[str, ...]
    levels: Levels | None
    """How seeds are crossed; None where a seed redraws everything at once."""
    details: tuple[str, ...]
    """Notes for the files alone: what a terminal need not say as long as all is well."""
    reference: str | None
    """The model whose embeddings monosemanticity compares images by."""
    environment: Mapping[str, Any]
    recipe: str
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def claims(self) -> list[tuple[Table, Comparison]]:
        """Every comparison with a verdict, in the order of the tables."""
        return [(table, c) for table in self.tables for c in table.comparisons if c.is_claim]
