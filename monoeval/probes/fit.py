"""Fit the probes of one call: check what was asked for, then hand it to the kind of probe."""

from collections.abc import Sequence

import numpy as np

from monoeval.data.images import Ints
from monoeval.errors import UsageError, enough_memory
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.means import fit_means
from monoeval.probes.neighbours import fit_neighbours
from monoeval.probes.paper import fit_paper
from monoeval.probes.problem import Probes, Problem
from monoeval.probes.ridge import fit_ridge
from monoeval.probes.select import fit_selected
from monoeval.probes.spec import KNN, Gradient, NearestMean, Paper, PaperCached, Ridge
from monoeval.spec import Spec


def fit_probes(
    codes: TrainingCodes,
    problems: Sequence[Problem],
    n_classes: int,
    spec: Spec,
    *,
    views: Sequence[TrainingCodes] = (),
    judged: bool = False,
) -> Probes:
    """Tune and fit one probe a problem on shared codes [N, M]; `spec` is any of `probes.spec.PROBES`.

    `views` are codes of random views of the same rows, which the kind `paper` is trained on and no other reads.
    `judged`: with validation losses also where the spec leaves nothing to tune, but for the paper's kinds.
    Raises MonoevalError for codes that are not finite or too large for the memory, UsageError for problems that
    cannot be fitted.
    """
    _check(codes, problems, n_classes)
    size = f"probes of {n_classes:,} classes on {len(codes):,} rows of {codes.width:,} codes"
    with enough_memory(size, "use --limit, a narrower adapter, or --probe ncm, which needs least"):
        return _fit(codes, problems, n_classes, spec, views, judged)


def _fit(
    codes: TrainingCodes,
    problems: Sequence[Problem],
    n_classes: int,
    spec: Spec,
    views: Sequence[TrainingCodes],
    judged: bool,
) -> Probes:
    if isinstance(spec, Paper) and len(views) != spec.n_views:
        raise UsageError(f"This probe needs codes of {spec.n_views} views, not {len(views)}: choose paper-cached.")
    if isinstance(spec, Paper | PaperCached):
        return fit_paper(views if isinstance(spec, Paper) else [codes], problems, n_classes, spec)
    if isinstance(spec, Ridge):
        return fit_ridge(codes, problems, n_classes, spec)
    if isinstance(spec, NearestMean):
        return fit_means(codes, problems, n_classes, spec)
    if isinstance(spec, KNN):
        return fit_neighbours(codes, problems, n_classes, spec)
    assert isinstance(spec, Gradient)
    return fit_selected(codes, problems, n_classes, spec, judged=judged)


def _check(codes: TrainingCodes, problems: Sequence[Problem], n_classes: int) -> None:
    for problem in problems:
        if len(problem.rows) == 0:
            raise UsageError("A probe was asked for without a single training row: raise --limit or the shots.")
        _check_labels(problem.rows, problem.labels, len(codes), n_classes, "training")
        if problem.selection_labels is not None:
            _check_labels(problem.rows, problem.selection_labels, len(codes), n_classes, "training")
        if len(np.unique(problem.labels)) < 2:
            raise UsageError(
                f"All {len(problem.rows)} training rows of a probe are of class {problem.labels[0]}, and a probe "
                "needs two classes: raise --limit, or check the label column."
            )
        if problem.validation_rows is not None:
            labels = problem.validation_labels
            if labels is None or len(problem.validation_rows) == 0:
                raise UsageError("A probe's validation rows need at least one row, and labels: raise the shots.")
            _check_labels(problem.validation_rows, labels, len(codes), n_classes, "validation")


def _check_labels(rows: Ints, labels: Ints, n: int, n_classes: int, kind: str) -> None:
    if len(rows) != len(labels):
        raise UsageError(f"A probe has {len(rows)} {kind} rows but {len(labels)} labels: give one label a row.")
    if rows.min() < 0 or rows.max() >= n:
        raise UsageError(
            f"A probe's {kind} rows run from {rows.min()} to {rows.max()}, outside the {n} rows of codes."
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise UsageError(
            f"A probe's {kind} labels run from {labels.min()} to {labels.max()}, outside 0 to {n_classes - 1}: "
            "check the label column."
        )
