"""The training codes of one arm as probes read them: divided by one scale, held in memory where they fit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import Codes, SparseRows
from monoeval.data.images import Ints
from monoeval.errors import MonoevalError
from monoeval.hardware import free_bytes

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class TrainingCodes:
    """Codes [N, M]: a float32 tensor, sparse rows, or a stream that is computed again whenever it is read.

    What is read is divided by `scale`, so that one L2 grid means the same for every arm.
    """

    held: Tensor | SparseRows | Codes
    scale: float = 1.0
    name: str = "the adapter"
    """Whose codes they are, for messages. Raises MonoevalError where codes that are held are not finite."""

    def __post_init__(self) -> None:
        if not isinstance(self.held, Codes):
            values = self.held.values if isinstance(self.held, SparseRows) else self.held
            _refuse_broken([torch.isfinite(values).all(1)], self.name)

    @classmethod
    def of(cls, codes: Codes) -> "TrainingCodes":
        """Hold `codes` where they fit into a third of the free memory, and stream them elsewhere.

        The scale is the root-mean-square norm of the centred rows. Raises MonoevalError where it is not a positive
        finite number.
        """
        first = next(codes.chunks(np.arange(min(1, len(codes)))))
        row_bytes = 12 * first.values.shape[1] if isinstance(first, SparseRows) else 4 * codes.width
        name = codes.adapter.method
        if len(codes) * row_bytes > free_bytes(codes.device) / 3:
            return cls(codes, _scale(codes.chunks(), codes.width, name), name)
        parts = list(codes.chunks())
        scale = _scale(parts, codes.width, name)
        if isinstance(first, SparseRows):
            sparse = [p for p in parts if isinstance(p, SparseRows)]
            values = _where_probes_run(torch.cat([p.values for p in sparse]))
            indices = _where_probes_run(torch.cat([p.indices for p in sparse]))
            return cls(SparseRows(values, indices, codes.width), scale, name)
        dense = torch.cat([p for p in parts if isinstance(p, Tensor)])
        return cls(_where_probes_run(dense), scale, name)

    @property
    def sparse(self) -> bool:
        if isinstance(self.held, Codes):
            return isinstance(next(self.held.chunks(np.arange(1))), SparseRows)
        return isinstance(self.held, SparseRows)

    @property
    def width(self) -> int:
        return self.held.shape[1] if isinstance(self.held, Tensor) else self.held.width

    @property
    def device(self) -> torch.device:
        """Where probes are fitted."""
        if isinstance(self.held, Codes):
            return torch.device("cpu") if self.held.device.type == "mps" else self.held.device
        return self.held.device if isinstance(self.held, Tensor) else self.held.values.device

    def __len__(self) -> int:
        return len(self.held.values) if isinstance(self.held, SparseRows) else len(self.held)

    def chunks(self, size: int = CHUNK_ROWS) -> Iterator[tuple[slice, Tensor | SparseRows]]:
        """All rows in order, at most `size` at a time, with their positions."""
        if isinstance(self.held, Codes):
            at = 0
            for chunk in self.held.chunks(size=size):
                n = len(chunk.values) if isinstance(chunk, SparseRows) else len(chunk)
                yield slice(at, at + n), self._scaled(chunk)
                at += n
            return
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            if isinstance(self.held, SparseRows):
                part = SparseRows(self.held.values[rows], self.held.indices[rows], self.width)
                yield rows, self._scaled(part)
            else:
                yield rows, self._scaled(self.held[rows])

    def whole(self) -> Tensor:
        """All codes [N, M] as a new float32 tensor; only where that fits."""
        return torch.cat([c.dense() if isinstance(c, SparseRows) else c for _, c in self.chunks()])

    def compact(self, rows: Tensor) -> tuple[Tensor | slice, Tensor]:
        """Codes [n, A] of a few rows on the columns they use, and those columns (all of them for dense codes)."""
        if not isinstance(self.held, SparseRows):
            return slice(None), self.dense(rows.cpu().numpy())
        values, indices = self.held.values[rows], self.held.indices[rows]
        columns, place = torch.unique(indices[values != 0], return_inverse=True)
        codes_na = values.new_zeros(len(rows), len(columns))
        at = (values != 0).nonzero()[:, 0]
        codes_na.index_put_((at, place), values[values != 0], accumulate=True)
        return columns, codes_na / self.scale

    def dense(self, rows: Ints) -> Tensor:
        """Codes [n, M] of a few rows, as float32."""
        if isinstance(self.held, Codes):
            return self._dense(self.held.dense(np.asarray(rows)))
        index = torch.from_numpy(np.asarray(rows)).to(self.device)
        if isinstance(self.held, SparseRows):
            return self._dense(SparseRows(self.held.values[index], self.held.indices[index], self.width).dense())
        return self._dense(self.held[index])

    def _dense(self, codes: Tensor) -> Tensor:
        return _where_probes_run(codes) / self.scale

    def _scaled(self, chunk: Tensor | SparseRows) -> Tensor | SparseRows:
        if isinstance(chunk, SparseRows):
            return SparseRows(
                _where_probes_run(chunk.values) / self.scale, _where_probes_run(chunk.indices), chunk.width
            )
        return _where_probes_run(chunk) / self.scale


def _where_probes_run(values: Tensor) -> Tensor:
    """Probes need float64 sums, which MPS does not have."""
    return values.cpu() if values.device.type == "mps" else values


def _refuse_broken(finite: list[Tensor], name: str) -> None:
    broken = (~torch.cat(finite)).nonzero()[:, 0].tolist()
    if broken:
        some = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        raise MonoevalError(
            f"{len(broken)} of {sum(map(len, finite))} rows of the codes of {name} hold NaN or infinite numbers "
            f"(rows {some}), so no probe can be fitted: extract the features again with --precision fp32, or "
            "leave this method out."
        )


def _scale(chunks: Iterable[Tensor | SparseRows], width: int, name: str) -> float:
    """Root-mean-square norm of the centred rows, in float64."""
    total, squares, finite = torch.zeros(width, dtype=torch.float64), 0.0, []
    for chunk in chunks:
        values = _where_probes_run(chunk.values if isinstance(chunk, SparseRows) else chunk).double()
        total = total.to(values.device)
        if isinstance(chunk, SparseRows):
            total.scatter_add_(0, _where_probes_run(chunk.indices).flatten(), values.flatten())
        else:
            total += values.sum(0)
        squares += float(values.square().sum())
        finite.append(torch.isfinite(values).all(1))
    _refuse_broken(finite, name)
    n = sum(map(len, finite))
    variance = squares / n - float((total / n).square().sum())
    if variance <= 1e-12 * squares / n:
        raise MonoevalError(f"The codes of {name} are the same for every image: nothing can be learned from them.")
    return float(np.sqrt(variance))
