"""The zero-shot learner: class names instead of a fitted probe, or the average of the two in weights (WiSE)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monoeval.backbones.load import choose_device
from monoeval.backbones.text import class_weights
from monoeval.errors import UsageError
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Choice, LinearProbes, Probes, Problem
from monoeval.probes.spec import WiSE, ZeroShot
from monoeval.spec import Spec
from monoeval.suite import frozen
from monoeval.suite.plan import Group
from monoeval.suite.score import Score
from monoeval.suite.trial_rows import load


def score(group: Group, device: str) -> list[Score]:
    """Make every score of `group`, in the order of its trials, as the frozen learner does but for the weights."""
    classifier = _Classifier(group, device)
    scores = frozen.score(group, device, make_probes=classifier)
    if isinstance(group.probe, WiSE):
        return scores
    # no label was read, so no noise in labels says anything of these rows
    unlabelled = {"label_signal": None, "realised_rate": None}
    return [replace(made, row=made.row.model_copy(update=unlabelled)) for made in scores]


@dataclass(frozen=True)
class _Classifier:
    """Takes the place of `probes.fit.fit_probes`."""

    group: Group
    device: str

    def __call__(
        self,
        codes: TrainingCodes,
        problems: Sequence[Problem],
        n_classes: int,
        spec: Spec,
        *,
        views: Sequence[TrainingCodes] = (),  # noqa: ARG002 (no probe here reads views)
    ) -> Probes:
        assert isinstance(spec, ZeroShot)
        names = load(self.group.data).train.class_names
        assert len(names) == n_classes
        text_cm = class_weights(self.group.backbone, names, spec.templates, choose_device(self.device))
        text_cm = text_cm.to(codes.device)
        if not isinstance(spec, WiSE):
            weights_pcm = text_cm.expand(len(problems), -1, -1)
            choices = [Choice(measures={"scale": float(text_cm[0].norm())}) for _ in problems]
            return LinearProbes(weights_pcm, weights_pcm.new_zeros(weights_pcm.shape[:2]), choices)
        fitted = fit_probes(codes, problems, n_classes, spec.probe)
        if not isinstance(fitted, LinearProbes):
            raise UsageError("wise averages weights with those of a linear probe: name logistic as its probe.")
        return averaged(text_cm, fitted, spec.alpha)


def averaged(text_cm: Tensor, probes: LinearProbes, alpha: float) -> LinearProbes:
    """(1 − α)·text weights [C, M] + α·each probe's weights [P, C, M], its intercept [P, C] times α.

    Both read the same unit-length features as they are (what a probe subtracts or divides by is folded into its
    weights and intercept), so logits are averaged by the same formula. A class without a training row, whose
    intercept is −inf, stays out of reach at every α > 0; α = 0 is the zero-shot classifier.
    """
    intercept_pc = probes.intercept_pc * alpha if alpha else torch.zeros_like(probes.intercept_pc)
    choices = [replace(c, measures={**c.measures, "alpha": alpha}) for c in probes.choices]
    return LinearProbes((1 - alpha) * text_cm + alpha * probes.weights_pcm, intercept_pc, choices)
