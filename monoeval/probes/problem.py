"""The contract of the probe room: what is fitted, and what comes out."""

from dataclasses import dataclass

from torch import Tensor

from monoeval.data.images import Ints


@dataclass(frozen=True)
class Problem:
    """One probe to be fitted: labels for some rows of shared codes."""

    rows: Ints  # [n] positions in the training codes
    labels: Ints  # [n] in [0, n_classes)
    validation_rows: Ints | None = None  # None: cross-validate within `rows`
    validation_labels: Ints | None = None
    groups: Ints | None = None  # [n] rows that stay in one fold


@dataclass(frozen=True)
class FittedProbe:
    """A linear classifier on codes: logits = codes · weights ᵀ + intercept (any scaling is folded in)."""

    weights_cm: Tensor  # [C, M] float32
    intercept_c: Tensor  # [C] float32; -inf for classes without a training row
    l2: float
    validation_loss: float
    at_edge: bool
    """The chosen L2 is the grid's last value even after extending it."""
    converged: bool
