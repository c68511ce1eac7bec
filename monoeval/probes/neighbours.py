"""Votes of the most similar training rows, found once for all problems on the same rows."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from monoeval.adapters.base import SparseRows
from monoeval.data.images import Ints
from monoeval.keys import draw_seed
from monoeval.probes.batch import MANY_ROWS
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.held_out import SharedRows, add_to_slots, at_most_judged, dense, read, shared_rows, take
from monoeval.probes.problem import Choice, Probes, Problem
from monoeval.probes.spec import KNN
from monoeval.progress import bar

QUERIES = 1024
"""Rows that are compared with a chunk of training rows at once (16 MB of cosines)."""


def fit_neighbours(codes: TrainingCodes, problems: Sequence[Problem], n_classes: int, spec: KNN) -> Probes:
    """Choose the number of neighbours of each problem on shared codes [N, M].

    Similarity is the cosine of codes less their mean over the problem's rows: without that, codes with a large
    common part (a ReLU's) are all alike, and the probe would be the only one here that a shift of the codes
    changes. A row's classes get softmax(cosine / temperature) over its k neighbours as votes, and

        p_c = (k · votes_c + share_c) / (k + 1),

    as if one more neighbour had its label drawn from the class shares of the training rows: no class that has
    rows has probability 0, and one without rows has logit −inf.

    k is the one of `neighbours` (cut to the number of rows) with the smallest log-loss, the smaller of equals, on
    the validation rows or by leave-one-out: each training row among all others that are not of its group, which
    is exact and needs no folds. From `MANY_ROWS` on a fifth of the rows, drawn at random, is scored. k and the
    temperature are in `measures`.
    """
    voters: dict[int, _Voters] = {}
    choices: dict[int, Choice] = {}
    with bar("Fitting probes", len(problems), "probe") as advance:
        for shared in shared_rows(problems, codes.device):
            reference = _Reference.of(codes, shared.pool[: shared.n])
            ks = sorted({min(k, shared.n) for k in spec.neighbours})
            own, scored = _scored(shared, codes.device)
            queries = take(codes, shared.pool[scored])
            found = reference.search(
                queries, ks[-1], own, None if own is None else own[torch.from_numpy(scored).to(codes.device)]
            )
            for i, labels, judged_by in zip(shared.members, shared.labels, shared.judged_by, strict=True):
                losses = _mean_losses(found, labels, judged_by, scored, ks, own, shared.n, spec.temperature)
                best = min(range(len(ks)), key=losses.__getitem__)  # the first where no row could be judged
                voters[i] = _Voters.of(reference, labels[: shared.n], n_classes, ks[best])
                measures = {"neighbours": float(ks[best]), "temperature": spec.temperature}
                choices[i] = Choice(validation_loss=losses[best], measures=measures)
            advance(len(shared.members))
    order = range(len(problems))
    return NeighbourProbes([voters[i] for i in order], spec.temperature, [choices[i] for i in order])


@torch.no_grad()
def distances_to_neighbour(
    codes: TrainingCodes, rows: Ints, chunks: Iterable[Tensor | SparseRows], k: int
) -> NDArray[np.float32]:
    """Distance [n], 1 − cosine, of codes as the adapter gave them to their k-th most similar training row.

    Cosines are of codes less their mean over the training `rows`, as in `fit_neighbours`; with fewer than k rows,
    the distance is to the last.
    """
    reference = _Reference.of(codes, rows)
    parts = [reference.search(reference.scaled(chunk), min(k, len(rows)))[0][:, -1].cpu() for chunk in chunks]
    return (1 - torch.cat(parts)).numpy() if parts else np.empty(0, dtype=np.float32)


@dataclass(frozen=True)
class NeighbourProbes(Probes):
    """Votes of neighbours among training codes, which are kept, or read again where they are a stream.

    Logits are log p_c plus the log of the mean of exp(cosine / temperature) over the neighbours. That number a row
    changes no probability, and makes the energy low near the training rows, as a kernel density would.
    """

    voters: Sequence["_Voters"]
    temperature: float
    choices: Sequence[Choice]

    def logits(self, codes_nm: Tensor | SparseRows, members: Sequence[int]) -> Tensor:
        chosen = [self.voters[i] for i in members]
        together: dict[int, list[int]] = defaultdict(list)
        for place, voters in enumerate(chosen):
            together[id(voters.reference)].append(place)
        n = len(codes_nm.values) if isinstance(codes_nm, SparseRows) else len(codes_nm)
        shares_pc = torch.stack([voters.share_c for voters in chosen])
        logits_npc = shares_pc.new_empty(n, *shares_pc.shape)
        for places in together.values():
            reference = chosen[places[0]].reference
            most = max(chosen[place].k for place in places)
            cosines_nk, nearest_nk = reference.search(reference.scaled(codes_nm), most)
            for place in places:
                k, labels = chosen[place].k, chosen[place].labels
                weights = cosines_nk[:, :k] / self.temperature
                votes = torch.zeros_like(logits_npc[:, place])
                votes.scatter_add_(1, labels[nearest_nk[:, :k]], torch.softmax(weights, 1))
                chance = (k * votes + shares_pc[place]) / (k + 1)
                logits_npc[:, place] = chance.log() + (weights.logsumexp(1, keepdim=True) - np.log(k))
        return logits_npc


@dataclass(frozen=True)
class _Reference:
    """The rows among which neighbours are sought."""

    codes: TrainingCodes
    rows: Ints  # [n]
    mean_m: Tensor  # float32

    @classmethod
    def of(cls, codes: TrainingCodes, rows: Ints) -> "_Reference":
        total = torch.zeros(1, codes.width, dtype=torch.float64, device=codes.device)
        for part, chunk in read(codes, rows):
            add_to_slots(total, chunk, torch.zeros(part.stop - part.start, dtype=torch.int64, device=codes.device))
        return cls(codes, rows, (total[0] / len(rows)).float())

    def scaled(self, codes_nm: Tensor | SparseRows) -> Tensor | SparseRows:
        """Codes as the adapter gave them, on the scale of the training codes."""
        device, scale = self.codes.device, self.codes.scale
        if isinstance(codes_nm, SparseRows):
            return SparseRows(codes_nm.values.to(device) / scale, codes_nm.indices.to(device), codes_nm.width)
        return codes_nm.to(device) / scale

    def search(
        self,
        queries: Tensor | SparseRows,
        k: int,
        own_n: Tensor | None = None,
        own_v: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cosines float32 [v, k], largest first, of scaled queries with rows, and the rows' positions int64.

        Rows with the same number in `own_n` as the query in `own_v` are no neighbours: where fewer than k are
        left, cosines are −inf.
        """
        n = len(queries.values) if isinstance(queries, SparseRows) else len(queries)
        cosines_vk = self.mean_m.new_full((n, k), -torch.inf)
        nearest_vk = torch.zeros(n, k, dtype=torch.int64, device=self.mean_m.device)
        for part, chunk in read(self.codes, self.rows):
            compare = self._comparison(chunk)
            for start in range(0, n, QUERIES):
                some = slice(start, start + QUERIES)
                cosines = compare(self._unit(dense(_slice(queries, some))))
                if own_n is not None and own_v is not None:
                    cosines.masked_fill_(own_v[some, None] == own_n[part], -torch.inf)
                best, place = cosines.topk(min(k, cosines.shape[1]), 1)
                both = torch.cat([cosines_vk[some], best], 1)
                places = torch.cat([nearest_vk[some], place + part.start], 1)
                cosines_vk[some], order = both.topk(k, 1)
                nearest_vk[some] = places.gather(1, order)
        return cosines_vk, nearest_vk

    def _unit(self, codes_vm: Tensor) -> Tensor:
        return normalize(codes_vm - self.mean_m, dim=1)

    def _comparison(self, chunk: Tensor | SparseRows) -> Callable[[Tensor], Tensor]:
        """What gives cosines [v, n] of unit queries [v, M] with the rows of a chunk."""
        if isinstance(chunk, Tensor):
            unit_nm = self._unit(chunk)
            return lambda queries_vm: queries_vm @ unit_nm.T
        # ‖x − m‖² = ‖x‖² − 2x·m + ‖m‖² keeps the rows sparse
        mean = self.mean_m.double()
        values = chunk.values.double()
        squares = values.square().sum(1) - 2 * (values * mean[chunk.indices]).sum(1) + mean.square().sum()
        norm_n = squares.clamp(min=1e-24).sqrt().float()

        def cosines(queries_vm: Tensor) -> Tensor:
            products_nv = embedding_bag(
                chunk.indices, queries_vm.T.contiguous(), mode="sum", per_sample_weights=chunk.values
            )
            return ((products_nv - queries_vm @ self.mean_m) / norm_n[:, None]).T.contiguous()

        return cosines


@dataclass(frozen=True)
class _Voters:
    """The labels of reference rows, and how many of them vote."""

    reference: _Reference
    labels: Tensor  # [n] int64
    share_c: Tensor  # float32
    k: int

    @classmethod
    def of(cls, reference: _Reference, labels: Tensor, n_classes: int, k: int) -> "_Voters":
        counts = torch.bincount(labels, minlength=n_classes)
        return cls(reference, labels, (counts / len(labels)).float(), k)


def _slice(codes: Tensor | SparseRows, rows: slice) -> Tensor | SparseRows:
    if isinstance(codes, SparseRows):
        return SparseRows(codes.values[rows], codes.indices[rows], codes.width)
    return codes[rows]


def _scored(shared: SharedRows, device: torch.device) -> tuple[Tensor | None, Ints]:
    """The number of each training row's group, None with validation rows; and positions of the rows to score."""
    if shared.validated:
        return None, at_most_judged(np.arange(shared.n, len(shared.pool)))
    own = shared.pool if shared.groups is None else shared.groups
    everyone = np.arange(shared.n)
    if shared.n >= MANY_ROWS:
        everyone = np.sort(
            np.random.default_rng(draw_seed("judged", shared.n)).permutation(everyone)[: shared.n // 5]
        )
    return torch.from_numpy(np.unique(own, return_inverse=True)[1]).to(device), at_most_judged(everyone)


def _mean_losses(
    found: tuple[Tensor, Tensor],
    labels: Tensor,
    judged_by: Tensor,
    scored: Ints,
    ks: Sequence[int],
    own_n: Tensor | None,
    n: int,
    temperature: float,
) -> list[float]:
    """The mean log-loss of each k over scored rows whose class some other row has; NaN where there is none."""
    cosines_vk, nearest_vk = found
    index = torch.from_numpy(scored).to(labels.device)
    mine, label_v = labels[:n], judged_by[index]
    n_classes = int(max(labels.max(), judged_by.max())) + 1
    others_v, alike_v = torch.full_like(label_v, n), torch.bincount(mine, minlength=n_classes)[label_v]
    if own_n is not None:
        kinds, counts = torch.unique(own_n * n_classes + mine, return_counts=True)
        wanted_v = own_n[index] * n_classes + label_v
        place_v = torch.searchsorted(kinds, wanted_v).clamp(max=len(kinds) - 1)
        others_v = others_v - torch.bincount(own_n)[own_n[index]]
        alike_v = alike_v - torch.where(kinds[place_v] == wanted_v, counts[place_v], 0)
    known = alike_v > 0
    share_v = (alike_v / others_v)[known]
    cosines_vk, nearest_vk = cosines_vk[known], nearest_vk[known]
    weights_vk = ((cosines_vk - cosines_vk[:, :1]) / temperature).exp().double()
    alike_vk = weights_vk * (mine[nearest_vk] == label_v[known, None])
    k_j = torch.tensor(ks, device=labels.device)
    votes_vj = (alike_vk.cumsum(1) / weights_vk.cumsum(1))[:, k_j - 1]
    chance_vj = (k_j * votes_vj + share_v[:, None]) / (k_j + 1)
    return [float(x) for x in -chance_vj.log().mean(0)]
