"""How monosemantic each latent of an adapter is, from one pass over its codes; and latents chosen by that."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from monoeval.adapters.base import Codes, SparseRows
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import Ints
from monoeval.errors import MonoevalError
from monoeval.keys import draw_seed
from monoeval.metrics.separation import Spectrum
from monoeval.metrics.streams import Entries, active, checked_labels, chunk_rows, chunks

MIN_SUPPORT = 5
"""Active rows below which the classes of a latent are not judged: with one row every latent is consistent."""
_LAST = (1 << 31) - 1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Latents:
    """Measures of M latents on n rows; float64 [M], NaN where undefined.

    A latent is active in a row where |z| > 1e-5 after the row is divided by its Euclidean length, so signed dense
    codes are active everywhere. `_chance` is the same figure under labels permuted once, by the seed.
    """

    n_rows: int
    fired: Floats
    """Share of rows where the latent is active; 0 is a dead latent."""
    energy: Floats
    """Mean of z² over all rows, of codes as they are."""
    consistency: Floats
    """Share of the most frequent class among the active rows (semantic consistency; Wang et al., ICLR 2024), for
    latents with `MIN_SUPPORT` active rows."""
    consistency_chance: Floats
    top_consistency: Floats
    """The same among the n rows with the largest |z|, for latents with n active rows: n is one for every arm, so
    this does not favour sparse ones."""
    top_consistency_chance: Floats
    entropy: Floats
    """Entropy of the active rows' classes over log K, for latents with `MIN_SUPPORT` active rows and K > 1."""
    entropy_chance: Floats
    monosemanticity: Floats
    """Monosemanticity score (Pach et al. 2025, arXiv 2504.02821): mean cosine of two rows' reference embeddings,
    weighted by the product of their min-max scaled z, for latents with two active rows."""
    monosemanticity_chance: float
    """What a latent that is the same for all rows would score: the mean cosine of two rows' embeddings."""
    top_class: Ints
    """The most frequent class of the top rows, the first of equal ones; -1 for dead latents."""
    top_rows: Ints
    """[M, n] rows of the feature set by falling |z|, earlier rows first where equal; -1 where fewer are active."""
    top_values: NDArray[np.float32]
    """[M, n] z in the top rows, with its sign; 0 where fewer are active."""
    l0_mean: float
    """Active latents a row."""
    l0_std: float
    effective_rank: float
    effective_rank_bound: int
    """The largest effective rank that could come out (`separation.Spectrum`)."""

    @property
    def living(self) -> NDArray[np.bool_]:
        return self.fired > 0

    @property
    def score(self) -> Floats:
        """What latents are ranked by: monosemanticity with a reference, the top rows' consistency without."""
        scored_by_reference = np.isfinite(self.monosemanticity).any()
        return self.monosemanticity if scored_by_reference else self.top_consistency

    def summary(self) -> dict[str, float]:
        """Means over the living latents where each measure is defined, and measures of the codes as a whole.

        `supported_share` and `top_supported_share`: on what share of all latents the (top) consistency is defined.
        """
        means = {
            name: _mean(getattr(self, name)[self.living])
            for name in (
                "consistency",
                "consistency_chance",
                "top_consistency",
                "top_consistency_chance",
                "entropy",
                "entropy_chance",
                "monosemanticity",
            )
        }
        return {
            **means,
            "monosemanticity_chance": self.monosemanticity_chance,
            "supported_share": float(np.isfinite(self.consistency).mean()),
            "top_supported_share": float(np.isfinite(self.top_consistency).mean()),
            "l0": self.l0_mean,
            "l0_std": self.l0_std,
            "dead_share": float((~self.living).mean()),
            "effective_rank": self.effective_rank,
            "effective_rank_bound": self.effective_rank_bound,
        }


@torch.no_grad()
def measure(
    codes: Codes,
    labels: ArrayLike,
    n_classes: int,
    *,
    rows: Ints | None = None,
    reference: FeatureSet | None = None,
    top: int = 20,
    seed: int = 0,
) -> Latents:
    """Measure every latent on `rows` (all where None), whose `labels` [n] are in [0, n_classes).

    `reference` holds embeddings [N, R] of the same images by another model. The codes are read once; what is kept
    grows with M·(K + R + `top`), not with the rows, besides the sample of `separation.Spectrum`. Sums are float64.

    Raises MonoevalError where labels or reference do not fit the codes, or either is not finite.
    """
    given = checked_labels(codes, labels, n_classes, rows)
    if reference is not None and reference.n != len(codes):
        raise MonoevalError(
            f"The reference has {reference.n:,} rows and the codes have {len(codes):,}: use one split for both."
        )
    if len(codes) > _LAST:
        raise MonoevalError(f"{len(codes):,} rows are more than can be measured at once: choose fewer rows.")
    permuted = np.random.default_rng(draw_seed("latents", "permuted", seed)).permutation(given)
    labels_2n = torch.from_numpy(np.stack([given, permuted])).to(codes.device)
    tally = _Tally(codes.width, n_classes, top, reference.width if reference else 0, codes.device)
    spectrum = Spectrum(codes.width, len(given), seed)
    embedded = reference.chunks(rows, chunk_rows(codes.width)) if reference else None
    for places, chunk in chunks(codes, rows):
        embeddings = _unit(next(embedded).to(codes.device)) if embedded else None
        tally.add(chunk, labels_2n[:, places], embeddings)
        spectrum.add(places, chunk)
    if not bool(torch.isfinite(tally.squares).all()):
        raise MonoevalError(
            f"Codes of {codes.adapter.method} are not finite for some of {len(given):,} rows: "
            "check the backbone, or extract with --precision fp32."
        )
    return tally.finish(given, permuted, rows, spectrum)


def choose_latents(
    latents: Latents, which: Literal["most", "least", "random"], count: int | None = None, *, seed: int
) -> Ints:
    """Sorted numbers [count] of the most, the least or random monosemantic latents, of equal rate and energy.

    `count` is a quarter of the latents that have a score where None.
    The living latents with a score are cut into equal strata of the firing rate, each of these into strata of the
    energy, √count of either. Every cell gives the same number to all three choices: those of highest score, those
    of lowest, or a draw by `seed` (which also decides between equal scores). So the three have one distribution of
    rate and energy, up to the width of a cell, and the most and the least share no latent.

    Raises MonoevalError where `count` is less than one, cells are too small for it, or fewer than two latents have
    a score.
    """
    eligible = np.flatnonzero(latents.living & np.isfinite(latents.score))
    if len(eligible) < 2:
        has = "Only one" if len(eligible) else "None"
        support = 2 if np.isfinite(latents.monosemanticity).any() else latents.top_rows.shape[1]
        raise MonoevalError(
            f"{has} of {len(latents.fired):,} latents has a score, which takes {support} of the "
            f"{latents.n_rows:,} rows that fire it, and two are compared at least: measure more rows, or give the "
            "method fewer latents or a larger k."
        )
    if count is None:
        count = max(1, len(eligible) // 4)
    generator = np.random.default_rng(draw_seed("latents", "chosen", seed))
    drawn = generator.permutation(len(latents.fired))
    cells = _cells(latents, eligible, max(1, int(np.sqrt(count)))) if count > 0 else []
    room = np.array([len(cell) // 2 for cell in cells], dtype=np.int64)
    if not 0 < count <= room.sum():
        raise MonoevalError(
            f"{count} latents cannot be matched in firing rate and energy among the {len(eligible)} that have a "
            f"score: ask for 1 to {max(1, len(eligible) // 4)}, or measure more rows."
        )
    chosen = []
    for cell, quota in zip(cells, _quotas(room, count), strict=True):
        if which == "random":
            order = np.argsort(drawn[cell])
        else:
            rank = np.lexsort((drawn[cell], latents.score[cell]))
            order = rank if which == "least" else rank[::-1]
        chosen.append(cell[order[:quota]])
    return np.sort(np.concatenate(chosen))


def _cells(latents: Latents, eligible: Ints, strata: int) -> list[Ints]:
    """Latents of nearly equal firing rate and energy, in `strata` by `strata` groups of nearly equal size."""
    by_rate = eligible[np.lexsort((latents.energy[eligible], latents.fired[eligible]))]
    cells = []
    for stratum in np.array_split(by_rate, strata):
        by_energy = stratum[np.argsort(latents.energy[stratum], kind="stable")]
        cells += np.array_split(by_energy, strata)
    return cells


def _quotas(room: Ints, count: int) -> Ints:
    """`count` spread over cells as evenly as their `room` lets it be."""
    quota = np.zeros_like(room)
    while (left := count - int(quota.sum())) > 0:
        open_cells = np.flatnonzero(quota < room)
        share = left // len(open_cells)
        if share:
            quota[open_cells] = np.minimum(quota[open_cells] + share, room[open_cells])
        else:  # the last ones to cells at equal distances, lest all had low rates
            quota[open_cells[np.arange(left) * len(open_cells) // left]] += 1
    return quota


class _Tally:
    """Sums over rows for each latent; every chunk may be dense or sparse."""

    def __init__(self, width: int, n_classes: int, top: int, reference: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.width, self.n_rows = width, 0
        self.filled = zeros(width, dtype=torch.int64)  # rows where z is not zero
        self.sums, self.squares = zeros(width), zeros(width)
        self.low, self.high = zeros(width) + torch.inf, zeros(width) - torch.inf
        self.counts_2km = zeros(2, n_classes, width, dtype=torch.int32)  # active rows by class, true and permuted
        self.strongest = zeros(width, top, dtype=torch.int64) - 1  # keys (`_keys`), largest first
        self.l0, self.l0_squares = zeros(), zeros()
        self.embedded_r = zeros(reference)  # Σ ê
        self.products_mr = zeros(width if reference else 0, reference)  # Σ z ê
        self.with_reference = reference > 0

    def add(self, chunk: Tensor | SparseRows, labels_2n: Tensor, embeddings_nr: Tensor | None) -> None:
        if isinstance(chunk, SparseRows):
            l0_n = self._add_sparse(chunk, labels_2n, embeddings_nr)
        else:
            l0_n = self._add_dense(chunk, labels_2n, embeddings_nr)
        self.n_rows += len(l0_n)
        self.l0 += l0_n.sum()
        self.l0_squares += l0_n.square().sum()
        if embeddings_nr is not None:
            self.embedded_r += embeddings_nr.sum(0)

    def _add_dense(self, codes_nm: Tensor, labels_2n: Tensor, embeddings_nr: Tensor | None) -> Tensor:
        z = codes_nm.double()
        is_active = active(z)
        self.filled += (z != 0).sum(0)
        self.sums += z.sum(0)
        self.squares += z.square().sum(0)
        self.low, self.high = torch.minimum(self.low, z.amin(0)), torch.maximum(self.high, z.amax(0))
        for counts_km, labels_n in zip(self.counts_2km, labels_2n, strict=True):
            counts_km.index_add_(0, labels_n, is_active.int())
        if embeddings_nr is not None:
            self.products_mr += z.T @ embeddings_nr
        positions = torch.arange(self.n_rows, self.n_rows + len(z), device=z.device)
        keys_nm = torch.where(is_active, _keys(codes_nm, positions[:, None]), -1)
        # a full list refuses nearly all of a later chunk, and then a sort of what is left costs less
        beats = keys_nm > self.strongest[:, -1]
        if int(beats.sum()) * 8 < beats.numel():
            at, latents = beats.nonzero(as_tuple=True)
            self._keep_strongest(latents, keys_nm[at, latents])
        else:
            here = keys_nm.T.contiguous().topk(min(len(z), self.strongest.shape[1]), dim=1).values
            merged = torch.cat([self.strongest, here], 1)
            self.strongest = merged.topk(self.strongest.shape[1], dim=1).values
        return is_active.sum(1).double()

    def _add_sparse(self, codes: SparseRows, labels_2n: Tensor, embeddings_nr: Tensor | None) -> Tensor:
        found = Entries.of(codes)
        rows, latents, z = found.rows, found.latents, found.values
        self.filled += torch.bincount(latents, minlength=self.width)
        self.sums.index_add_(0, latents, z)
        self.squares.index_add_(0, latents, z.square())
        self.low.scatter_reduce_(0, latents, z, "amin")
        self.high.scatter_reduce_(0, latents, z, "amax")
        if embeddings_nr is not None:
            order = latents.argsort(stable=True)
            ends = torch.bincount(latents, minlength=self.width).cumsum(0)
            starts = F.pad(ends[:-1], (1, 0))
            self.products_mr += F.embedding_bag(
                rows[order], embeddings_nr, starts, mode="sum", per_sample_weights=z[order]
            )
        rows, latents, z = rows[found.active], latents[found.active], z[found.active]
        one = torch.ones_like(latents, dtype=torch.int32)
        for counts_km, labels_n in zip(self.counts_2km, labels_2n, strict=True):
            counts_km.view(-1).index_add_(0, labels_n[rows] * self.width + latents, one)
        self._keep_strongest(latents, _keys(z.float(), rows + self.n_rows))
        return torch.bincount(rows, minlength=len(codes.values)).double()

    def _keep_strongest(self, latents: Tensor, keys: Tensor) -> None:
        """Merge keys [e] of latents [e] into the lists."""
        top = self.strongest.shape[1]
        beats = keys > self.strongest[latents, -1]
        latents, keys = latents[beats], keys[beats]
        if not len(keys):
            return
        order = keys.argsort(descending=True)
        order = order[latents[order].argsort(stable=True)]
        latents, keys = latents[order], keys[order]
        is_first = F.pad(latents[1:] != latents[:-1], (1, 0), value=True)
        first, group = is_first.nonzero()[:, 0], is_first.cumsum(0) - 1
        place = torch.arange(len(keys), device=keys.device) - first[group]
        changed, kept = latents[first], place < top
        here = self.strongest.new_full((len(changed), top), -1)
        here[group[kept], place[kept]] = keys[kept]
        self.strongest[changed] = torch.cat([self.strongest[changed], here], 1).topk(top, dim=1).values

    def finish(self, labels: Ints, permuted: Ints, rows: Ints | None, spectrum: Spectrum) -> Latents:
        n = self.n_rows
        active_rows = self.counts_2km[0].sum(0)
        (consistency, entropy), (by_chance, entropy_by_chance) = (_of_classes(c) for c in self.counts_2km)
        positions, values = (t.cpu().numpy() for t in _unpacked(self.strongest))
        top_class, share = _majority(labels, positions)
        _, share_by_chance = _majority(permuted, positions)
        l0 = float(self.l0) / n
        return Latents(
            n_rows=n,
            fired=_numpy(active_rows / n),
            energy=_numpy(self.squares / n),
            consistency=consistency,
            consistency_chance=by_chance,
            top_consistency=share,
            top_consistency_chance=share_by_chance,
            entropy=entropy,
            entropy_chance=entropy_by_chance,
            monosemanticity=_numpy(torch.where(active_rows >= 2, self._monosemanticity(), torch.nan)),
            monosemanticity_chance=float((self.embedded_r.square().sum() - n) / (n * n - n))
            if self.with_reference and n > 1
            else float("nan"),
            top_class=top_class,
            top_rows=positions if rows is None else np.where(positions < 0, -1, np.asarray(rows)[positions]),
            top_values=values,
            l0_mean=l0,
            l0_std=float(np.sqrt(max(0.0, float(self.l0_squares) / n - l0**2))),
            effective_rank=spectrum.effective_rank(),
            effective_rank_bound=spectrum.bound,
        )

    def _monosemanticity(self) -> Tensor:
        """(‖Σ ã_i ê_i‖² − Σ ã_i²) / ((Σ ã_i)² − Σ ã_i²) with ã = (z − low) / (high − low), in sums of z."""
        if not self.with_reference:
            return torch.full_like(self.sums, torch.nan)
        has_zeros = self.filled < self.n_rows
        low = torch.where(has_zeros, self.low.clamp(max=0), self.low)
        width = torch.where(has_zeros, self.high.clamp(min=0), self.high) - low
        total = (self.sums - self.n_rows * low) / width
        squares = (self.squares - 2 * low * self.sums + self.n_rows * low.square()) / width.square()
        joint = ((self.products_mr - low[:, None] * self.embedded_r) / width[:, None]).square().sum(1)
        pairs = total.square() - squares
        # with a single row off the minimum there is no pair, and rounding must not make one
        return torch.where(pairs > 1e-8, (joint - squares) / pairs, torch.nan)


def _keys(values: Tensor, positions: Tensor) -> Tensor:
    """int64 keys that sort by |value| (float32), then earlier positions first, and from which both can be read."""
    magnitude = values.float().abs().view(torch.int32).long()  # bits of positive floats sort as the floats do
    return (magnitude << 32) | ((_LAST - positions) << 1) | (values < 0).long()


def _unpacked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Positions, -1 for an empty place, and values, 0 there."""
    empty = keys < 0
    positions = torch.where(empty, -1, _LAST - ((keys >> 1) & _LAST))
    magnitude = (keys >> 32).int().view(torch.float32)
    return positions, torch.where(empty, 0.0, torch.where((keys & 1) == 1, -magnitude, magnitude))


def _of_classes(counts_km: Tensor) -> tuple[Floats, Floats]:
    """Share of the largest class, and entropy over log K, of each latent's counts."""
    counts = counts_km.double()
    total = counts.sum(0)
    share = counts.amax(0) / total
    entropy = (total.log() - torch.xlogy(counts, counts).sum(0) / total) / np.log(len(counts))
    supported = total >= MIN_SUPPORT
    if len(counts) < 2:
        entropy = torch.full_like(total, torch.nan)
    return _numpy(torch.where(supported, share, torch.nan)), _numpy(torch.where(supported, entropy, torch.nan))


def _majority(labels: Ints, positions_mt: Ints) -> tuple[Ints, Floats]:
    """The most frequent class of each latent's rows, and its share where no place is empty."""
    classes = np.where(positions_mt < 0, -1, labels[positions_mt])
    alike = np.zeros(classes.shape, dtype=np.int64)
    for place in classes.T:
        alike += classes == place[:, None]
    alike[classes < 0] = 0
    most = alike.max(axis=1, keepdims=True)
    first = np.where((alike == most) & (classes >= 0), classes, np.iinfo(np.int64).max).min(axis=1)
    full = (classes >= 0).all(axis=1)
    share = np.where(full, most[:, 0] / classes.shape[1], np.nan)
    return np.where(most[:, 0] > 0, first, -1), share


def _unit(embeddings_nr: Tensor) -> Tensor:
    embeddings = embeddings_nr.double()
    lengths = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        raise MonoevalError(
            "The reference embeds some rows as zeros or numbers that are not finite: choose another reference."
        )
    return embeddings.div_(lengths)


def _numpy(values: Tensor) -> Floats:
    return np.asarray(values.double().cpu().numpy())


def _mean(values: Floats) -> float:
    """Mean of what is defined; NaN where nothing is."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")
