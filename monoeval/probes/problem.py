"""The contract of the probe room: what is fitted, and what comes out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from monoeval.adapters.base import SparseRows
from monoeval.data.images import Ints


@dataclass(frozen=True)
class Problem:
    """One probe to be fitted: labels for some rows of shared codes."""

    rows: Ints  # [n] positions in the training codes
    labels: Ints  # [n] in [0, n_classes)
    validation_rows: Ints | None = None  # None: cross-validate within `rows`
    validation_labels: Ints | None = None
    groups: Ints | None = None  # [n] rows that stay in one fold
    selection_labels: Ints | None = None  # [n] by which rows that a fold left out are judged; None: `labels`

    @property
    def places(self) -> Ints:
        """All rows that are needed: those it is fitted on first, then those given for validation."""
        held = self.validation_rows
        return self.rows if held is None else np.concatenate([self.rows, held])


@dataclass(frozen=True)
class Choice:
    """What selection found for one problem, for the ledger."""

    l2: float | None = None
    validation_loss: float = float("nan")
    at_edge: bool = False
    """The chosen value is the last of a grid that could not be extended further."""
    converged: bool = True
    measures: Mapping[str, float] = field(default_factory=dict)
    """What else is known of the fit, for example the certified relative gap or the number of neighbours."""
    losses: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    """[v] validation loss of each judged row, where the spec has a rule that asks for them: see `probes.sweep`."""
    clusters: Ints | None = field(default=None, compare=False, repr=False)
    """[v] which of these rows are judged as one; None: each alone."""


class Probes(ABC):
    """The fitted probes of one call, in the order of their problems."""

    choices: Sequence[Choice]

    @abstractmethod
    def logits(self, codes_nm: Tensor | SparseRows, members: Sequence[int]) -> Tensor:
        """Logits float32 [n, len(members), C] of codes as the adapter gave them; -inf for unseen classes."""


@dataclass(frozen=True)
class LinearProbes(Probes):
    """Linear classifiers: logits = codes · weightsᵀ + intercept, any scaling folded in."""

    weights_pcm: Tensor  # [P, C, M] float32
    intercept_pc: Tensor  # [P, C] float32; -inf for classes without a training row
    choices: Sequence[Choice]
    _tables: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)
    """The weights of the members that were asked for last, as sparse codes read them."""

    def logits(self, codes_nm: Tensor | SparseRows, members: Sequence[int]) -> Tensor:
        chosen = torch.as_tensor(members, device=self.weights_pcm.device)
        intercept = self.intercept_pc[chosen].flatten()
        if isinstance(codes_nm, SparseRows):
            values, indices = codes_nm.values.to(intercept.device), codes_nm.indices.to(intercept.device)
            logits = (
                embedding_bag(indices, self._table(members), per_sample_weights=values, mode="sum") + intercept
            )
        else:
            weights = self.weights_pcm[chosen].flatten(0, 1)
            logits = torch.addmm(intercept, codes_nm.to(weights.device), weights.T)
        return logits.view(len(logits), len(members), -1)

    def _table(self, members: Sequence[int]) -> Tensor:
        """Weights [M, members · C]: each non-zero of a row gathers one of its rows."""
        if (key := tuple(members)) not in self._tables:
            self._tables.clear()
            self._tables[key] = self.weights_pcm[list(key)].flatten(0, 1).T.contiguous()
        return self._tables[key]
