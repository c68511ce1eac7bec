"""The nearest class mean, tuned by one number: how much a distance counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monoeval.probes.codes import TrainingCodes
from monoeval.probes.held_out import ClassSums, Judged, calibrate, dense, read, shared_rows
from monoeval.probes.problem import Choice, LinearProbes, Problem
from monoeval.probes.spec import NearestMean
from monoeval.progress import bar


def fit_means(
    codes: TrainingCodes, problems: Sequence[Problem], n_classes: int, spec: NearestMean
) -> LinearProbes:
    """Probes with logits −‖x − μ_c‖²/2τ, up to a number a row, of scaled codes x [N, M] and class means μ_c.

    These are the log-probabilities of equally frequent, spherical normal classes of one variance τ. It is chosen
    on held-out rows by log-loss (`calibrate`) and is the measure `temperature`. Sums are float64, in one pass over
    the rows of all problems that share them; a second one reads the rows that are scored. A class without a row
    has weights 0 and intercept −inf.
    """
    weights = torch.empty(len(problems), n_classes, codes.width, device=codes.device)
    intercept = torch.empty(len(problems), n_classes, device=codes.device)
    choices: dict[int, Choice] = {}
    with bar("Fitting probes", len(problems), "probe") as advance:
        for shared in shared_rows(problems, codes.device):
            fold, scored = shared.folds(spec.folds)
            sums = ClassSums.empty(shared, fold, n_classes, codes)
            fold_n = torch.from_numpy(fold).to(codes.device)
            for part, chunk in read(codes, shared.pool):
                sums.add(chunk, fold_n[part], [y[part] for y in shared.labels])
            for turn in shared.turns(sum(map(len, scored)), n_classes):
                judged = []
                for f, positions in enumerate(scored):
                    means = _Means.of(sums, turn, without=f)
                    scores = [means.scores(dense(chunk)) for _, chunk in read(codes, shared.pool[positions])]
                    judged.append(Judged(torch.cat(scores), shared.labels_of(positions, turn), means.seen_pc))
                calibration = calibrate(judged)
                means = _Means.of(sums, turn, without=0 if shared.validated else None)
                members = [shared.members[p] for p in turn]
                index, scale = torch.tensor(members, device=codes.device), calibration.scale_p[:, None]
                weights[index] = ((means.offsets_pcm / codes.scale) * scale[..., None]).float()
                intercept[index] = (means.intercept_pc() * scale).masked_fill_(~means.seen_pc, -torch.inf).float()
                for i, temperature, loss in zip(members, 1 / scale[:, 0], calibration.mean_loss_p(), strict=True):
                    measures = {"temperature": float(temperature)}
                    choices[i] = Choice(validation_loss=float(loss), measures=measures)
                advance(len(members))
    return LinearProbes(weights, intercept, [choices[i] for i in range(len(problems))])


@dataclass(frozen=True)
class _Means:
    """Class means as offsets from the mean of all rows, so that no digits cancel where that is far from zero."""

    offsets_pcm: Tensor  # float64; zero for classes without a row
    mean_m: Tensor  # float64
    seen_pc: Tensor  # bool

    @classmethod
    def of(cls, sums: ClassSums, problems: Sequence[int], without: int | None) -> "_Means":
        """Means over all folds but one."""
        sums_pcm, counts_pc = sums.over(problems, without)
        mean = sums_pcm[0].sum(0) / counts_pc[0].sum()
        seen = counts_pc > 0
        offsets = sums_pcm.div_(counts_pc.clamp(min=1)[..., None]).sub_(mean)
        return cls(offsets.masked_fill_(~seen[..., None], 0.0), mean, seen)

    def scores(self, codes_vm: Tensor) -> Tensor:
        """Scores float32 [v, P, C]."""
        half = 0.5 * self.offsets_pcm.square().sum(2).flatten()
        centred = (codes_vm.double() - self.mean_m).float()
        flat = torch.addmm(-half.float(), centred, self.offsets_pcm.flatten(0, 1).float().T)
        return flat.view(len(codes_vm), *self.seen_pc.shape)

    def intercept_pc(self) -> Tensor:
        """What makes codes · offsets + intercept the score, float64 [P, C]."""
        return -0.5 * self.offsets_pcm.square().sum(2) - self.offsets_pcm @ self.mean_m
