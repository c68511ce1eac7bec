"""The finetuning learner: images → one training for each fit → scores. Nothing of it is cached but the ledger."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from monoeval.backbones.extract import normalised
from monoeval.backbones.load import Backbone
from monoeval.backbones.preprocess import Preprocess
from monoeval.backbones.resolve import resolve
from monoeval.backbones.sources import build
from monoeval.data.images import Ints
from monoeval.errors import enough_memory, smaller_batch
from monoeval.probes.problem import Choice, Problem
from monoeval.progress import bar
from monoeval.scenarios.trial import Trial
from monoeval.suite.frozen import backbone_of, located, problem_of
from monoeval.suite.plan import Group
from monoeval.suite.score import Score, finished, joined, predicted, row_of, scored
from monoeval.suite.trial_rows import counts_as, load, test_images, tested_rows
from monoeval.training.finetune import Finetuner, Training
from monoeval.training.pictures import Pictures
from monoeval.training.settings import FinetuneSpec

AT_ONCE = 256
"""Test images that are prepared and scored together."""
PICTURES = Pictures()
"""Of the groups that follow each other, which differ in their arms and seeds and hardly in their images."""


def score(group: Group, device: str) -> list[Score]:
    """Make every score of `group`, in the order of its trials: each fit trains the network anew.

    Raises UsageError where the network cannot take the changes asked for, MonoevalError where a loss is not
    finite or memory runs out.
    """
    started = time.perf_counter()
    spec = group.probe
    assert isinstance(spec, FinetuneSpec)
    train = load(group.data).train
    where = located(group, device)
    backbone = backbone_of(where, device)
    network = build(resolve(where), where, 0)
    by_fit: dict[str, list[int]] = {}
    for position, trial in enumerate(group.trials):
        by_fit.setdefault(trial.fit.model_dump_json(), []).append(position)
    problems = [problem_of(group.trials[positions[0]]) for positions in by_fit.values()]
    used = np.unique(np.concatenate([p.places for p in problems]))
    size = backbone.preprocess.image_size
    with enough_memory(f"{len(used)} training images of {size} pixels", "give a smaller --limit or --image-size"):
        pixels = PICTURES.of(train, used, backbone.preprocess)
    problems = [_among(used, problem) for problem in problems]
    smaller = smaller_batch(spec.batch_size, "batch_size={}", "give a smaller --image-size or --limit")
    with (
        enough_memory(f"finetuning {backbone.name} in batches of {spec.batch_size} images", smaller),
        bar(f"Finetuning {backbone.name} ({spec.objective}, {spec.adapt})", len(problems), "fits") as advance,
    ):
        finetuner = Finetuner(
            network,
            spec,
            torch.from_numpy(pixels).permute(0, 3, 1, 2),
            len(train.class_names),
            name=group.backbone.model or group.arm.backbone,  # of a folder it is known by a hash
            device=backbone.device,
            bfloat16=backbone.precision == "bf16",
        )
        done: dict[int, Score] = {}
        for problem, positions in zip(problems, by_fit.values(), strict=True):
            training = finetuner.fit(problem, seed=group.adapter_seed or 0)
            done |= _scores(group, positions, backbone, finetuner, training, problem)
            advance(1)
    return finished(done, started)


def _scores(
    group: Group,
    positions: Sequence[int],
    backbone: Backbone,
    finetuner: Finetuner,
    training: Training,
    problem: Problem,
) -> dict[int, Score]:
    """The scores of some trials of `group`, by their place in it: all of one training, that on `problem`."""
    choice = Choice(
        at_edge=training.at_edge,
        measures={"learning_rate": training.learning_rate, "training_loss": training.loss},
    )
    report = {} if training.active is None else {"low_rank_active": training.active}
    unseen = np.setdiff1d(np.arange(len(load(group.data).train.class_names)), problem.labels)
    done = {}
    for position in positions:
        trial = group.trials[position]
        rows, labels = tested_rows(trial)
        counts, parts, broken = counts_as(trial), [], 0
        counts[unseen] = -1
        for at, batch in _tested(trial, rows, backbone.preprocess):
            logits_nc = finetuner.logits(batch).numpy()
            made, bad = predicted(logits_nc, labels[at], counts)
            parts.append(made)
            broken += bad
        empty = [predicted(np.empty((0, 2)), labels[:0], np.arange(2))[0]]
        row = row_of(group, position, backbone, choice, report)
        done[position] = scored(row, trial, joined(parts or empty), broken, labels)
    return done


def _among(used: Ints, problem: Problem) -> Problem:
    """`problem` with rows that count in `used` alone, which is sorted and has them all."""
    held = problem.validation_rows
    return replace(
        problem,
        rows=np.searchsorted(used, problem.rows),
        validation_rows=None if held is None else np.searchsorted(used, held),
    )


def _tested(trial: Trial, rows: Ints, preprocess: Preprocess) -> Iterator[tuple[slice, torch.Tensor]]:
    """Normalised test images, under the trial's change to them, in batches."""
    images = test_images(trial.test)
    for start in range(0, len(rows), AT_ONCE):
        at = slice(start, start + AT_ONCE)
        squares = PICTURES.of(images, rows[at], preprocess)
        yield at, normalised(preprocess, squares, images.ids[rows[at]], trial.test.transform)
