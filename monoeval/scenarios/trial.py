"""The contract of the scenario room: a `Trial` says what is fitted and what it is scored on, without arrays."""

from typing import Annotated, Literal

from pydantic import Field

from monoeval.data.images import DataSpec, Transform
from monoeval.data.label_noise import NoiseKind
from monoeval.data.official import Official
from monoeval.spec import Spec

Rate = Annotated[float, Field(ge=0, lt=1)]
SelectOn = Literal["noisy-val", "clean-val"]
"""Which labels of held-out rows a probe is tuned on; `clean-val` is an oracle, as no user has them."""


class Shots(Spec):
    """Train on `shots` rows of each class and tune on `validation` further ones; shots are nested in a draw."""

    shots: int
    validation: int
    draw: int
    repeat: int = 0


class Share(Spec):
    """Train on a share of each class; shares are nested in a draw."""

    share: Annotated[float, Field(gt=0, le=1)]
    draw: int
    repeat: int = 0


class LongTail(Spec):
    """Train on class sizes that fall exponentially, the largest `ratio` times the smallest."""

    ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    draw: int


class LabelNoise(Spec):
    """Replace some training labels: see `data.label_noise`, `data.instance_noise` and `data.given_labels`."""

    kind: NoiseKind
    rate: Rate
    """Of all rows; of the rows of each affected class for `asymmetric`; 0 for `human`, whose labels are given."""
    draw: int
    map: dict[str, str] | None = None
    """Class → the class it is taken for, of `asymmetric`; None: the published ones."""
    file: str | None = None
    column: str | None = None
    """Where the labels of `human` are."""
    select_on: SelectOn = "noisy-val"


class Fit(Spec):
    """What a probe is fitted on: trials with equal fits share one."""

    rows: Shots | Share | LongTail | None = None
    labels: LabelNoise | None = None


class TestSet(Spec):
    """What a probe is scored on."""

    __test__ = False  # not a pytest class

    data: DataSpec
    transform: Transform | None = None
    official: Official | None = None
    """Published copies of the test images of `data`, in place of them."""
    shared_with: DataSpec | None = None
    """Score only classes that this set has too, matched by name; None: all classes are the training set's."""
    whole: bool = False
    """Score all rows of a source that has one split only, rather than the part held out of it."""
    outside: bool = False
    """Score every row whatever its class, as of none of the training set's: its label is −1."""


class Detection(Spec):
    """How rows of elsewhere are told from those of the data."""

    neighbours: int
    """The distance to which nearest training row is kept of each test row (the last, where there are fewer)."""
    positive: Literal["id", "ood"]
    """Which side FPR95 calls positive."""


class Trial(Spec):
    """One score to be made: `fit` on the training rows of `data`, scored on `test`.

    `draw` is None where nothing is drawn, so equal work has one key whatever seed asked for it.
    """

    scenario: str
    protocol: str
    """What is measured, for example `label-noise/symmetric@0.8`; unlike protocols are never averaged."""
    series: str
    """What a curve is drawn through, for example `symmetric` or `gaussian_noise`."""
    level: float
    data: DataSpec
    fit: Fit = Fit()
    test: TestSet
    detection: Detection | None = None
    draw: int | None = None
    repeat: int = 0
