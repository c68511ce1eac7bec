"""What a trial comes to: the images it names, the rows it fits and tests, their labels, the classes that count."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from monoeval.data.given_labels import from_column, from_file
from monoeval.data.imagenet import same_classes
from monoeval.data.images import Data, DataSpec, ImageSet, Ints
from monoeval.data.instance_noise import instance
from monoeval.data.label_noise import Transitions, asymmetric, confused, symmetric
from monoeval.data.load import loaded, source_of
from monoeval.data.official import official_images
from monoeval.data.splits import long_tail, share, shots
from monoeval.errors import UsageError
from monoeval.scenarios.trial import Fit, LabelNoise, LongTail, Share, TestSet, Trial

log = logging.getLogger("monoeval")
_NAMED = 20
"""Classes that a sentence names before it only counts."""


def load(spec: DataSpec) -> Data:
    """`load_data`, once in a process."""
    return loaded(spec)


def test_images(test: TestSet) -> ImageSet:
    """The images a test set names."""
    if test.official is not None:
        return _published(test.model_dump_json())
    data = load(test.data)
    return data.whole if test.whole and data.whole is not None else data.test


@lru_cache(maxsize=256)
def _published(test_json: str) -> ImageSet:
    test = TestSet.model_validate_json(test_json)
    clean = test_images(test.model_copy(update={"official": None}))
    return clean if test.official is None else official_images(clean, test.official)


def check(trial: Trial) -> None:
    """Resolve what a trial needs, so that a study that cannot be finished never starts."""
    noise = trial.fit.labels
    if noise is not None and noise.kind == "instance":
        _rows(trial.fit, load(trial.data).train)  # its labels need the images, which are not decoded here
    else:
        fitted_rows(trial)
    shared = shared_classes(trial)
    if trial.test.whole and _overlap(trial):
        raise UsageError(
            f"The target of {trial.scenario} has rows of the data itself ({trial.test.data.label}), some of which "
            "are trained on: name another set with --target DATA."
        )
    if trial.test.outside:
        both = sorted(same_classes(load(trial.data).train.class_names, test_images(trial.test).class_names))
        if both:
            log.warning(
                "%s has classes of %s (%s): what is detected is a change of domain, not of class.",
                trial.test.data.name, trial.data.name, _some(both),
            )  # fmt: skip
    if trial.test.shared_with is not None and trial.test.data != trial.data:
        source, target = load(trial.data).train.class_names, test_images(trial.test).class_names
        also = same_classes(source, target)
        for here, every, alone in (
            (trial.data, source, [name for name in source if name not in shared]),
            (trial.test.data, target, [name for name in target if not set(also.get(name, ())) & set(shared)]),
        ):
            if alone:
                log.warning(
                    "Classes of %s alone are not scored under ood, %d of %d: %s.",
                    here.label, len(alone), len(every), _some(alone),
                )  # fmt: skip


def _overlap(trial: Trial) -> bool:
    """Whether test rows from elsewhere are rows of the training data's source."""
    if source_of(trial.test.data) != source_of(trial.data):
        return False  # ids are unique within a source only
    data = load(trial.data)
    return bool(np.isin(test_images(trial.test).ids, np.concatenate([data.train.ids, data.test.ids])).any())


def fitted_rows(trial: Trial) -> tuple[Ints, Ints, Ints | None]:
    """Training rows [n] and validation rows (None: cross-validate) of a fit, and the labels [N] of all rows.

    Raises UsageError for too few rows, and labels that cannot be had. Instance noise reads all training images,
    once for a draw.
    """
    rows, validation = _rows(trial.fit, load(trial.data).train)
    return rows, training_labels(trial), validation


def _rows(fit: Fit, train: ImageSet) -> tuple[Ints, Ints | None]:
    asked, labels, names = fit.rows, train.labels, train.class_names
    if asked is None:
        return np.arange(len(labels)), None
    if isinstance(asked, Share):
        return share(labels, names, asked.share, asked.draw, asked.repeat), None
    if isinstance(asked, LongTail):
        return long_tail(labels, names, asked.ratio, asked.draw), None
    return shots(labels, names, asked.shots, asked.validation, asked.draw, asked.repeat)


def training_labels(trial: Trial) -> Ints:
    """The labels [N] of all training rows that a probe of the trial is fitted on."""
    noise = trial.fit.labels
    if noise is None:
        return load(trial.data).train.labels
    noise = noise.model_copy(update={"select_on": "noisy-val"})  # equal labels are made once
    return _noisy(noise.model_dump_json(), trial.data.model_dump_json())


def transitions(trial: Trial) -> Transitions | None:
    """What the label noise of a trial did to the rows it is fitted on; None where labels are clean."""
    if trial.fit.labels is None:
        return None
    rows, labels, _ = fitted_rows(trial)
    return Transitions.of(load(trial.data).train.labels[rows], labels[rows])


@lru_cache(maxsize=32)  # of a million rows each: 256 MB
def _noisy(noise_json: str, data_json: str) -> Ints:
    noise, data = LabelNoise.model_validate_json(noise_json), DataSpec.model_validate_json(data_json)
    train = load(data).train
    n_classes = len(train.class_names)
    if noise.kind == "human":
        if noise.file is not None:
            return from_file(Path(noise.file), data, train)
        return from_column(str(noise.column), data, train)
    if noise.kind == "instance":
        return instance(train, noise.rate, noise.draw)
    if noise.kind == "asymmetric":
        taken_for = confused(train.class_names, noise.map, data.label)
        return asymmetric(train.labels, taken_for, noise.rate, noise.draw)
    inclusive = noise.kind == "symmetric-inclusive"
    return symmetric(train.labels, n_classes, noise.rate, noise.draw, inclusive=inclusive)


def shared_classes(trial: Trial) -> tuple[str, ...]:
    """Names of the training classes that the trial scores, in training order."""
    names = load(trial.data).train.class_names
    if trial.test.shared_with is None:
        return names
    tested, also = (set().union(*found.values()) for found in _same_classes(trial))
    shared = tuple(name for name in names if name in tested & also)
    if len(shared) < 2:
        target = trial.test.shared_with if trial.test.data == trial.data else trial.test.data
        raise UsageError(
            f"{trial.data.label} and {target.label} share {len(shared)} of {len(names)} classes by name "
            f"(source: {_some(names)}; target: {_some(load(target).test.class_names)}): rename the target's "
            "classes to match, or to WordNet ids such as n01440764 where both have classes of ImageNet."
        )
    return shared


def _some(names: tuple[str, ...] | list[str]) -> str:
    """All of `names` up to `_NAMED`; of more the first, and how many there are."""
    return ", ".join(names[:_NAMED]) + (f", … ({len(names)} in all)" if len(names) > _NAMED else "")


def _same_classes(trial: Trial) -> list[Mapping[str, tuple[str, ...]]]:
    """Classes of the test set, and of the set it shares them with, → the training classes that they are."""
    names, shared_with = load(trial.data).train.class_names, trial.test.shared_with
    sides = [test_images(trial.test)] + ([] if shared_with is None else [load(shared_with).test])
    return [same_classes(names, side.class_names) for side in sides]


def counts_as(trial: Trial) -> Ints:
    """The class [C] that each training class counts as: itself, or −1 where it is not scored.

    Training classes that are one class of either test set count as the first of them. Nothing does where classes
    are not shared with another set: rows from elsewhere are told apart by the scores that rows of the data have.
    """
    names = load(trial.data).train.class_names
    if trial.test.shared_with is None:
        return np.arange(len(names))
    position = {name: names.index(name) for name in shared_classes(trial)}
    counts = np.full(len(names), -1, dtype=np.int64)
    counts[list(position.values())] = list(position.values())
    for same in (same for side in _same_classes(trial) for same in side.values() if len(same) > 1):
        together = np.isin(counts, [counts[position[name]] for name in same if name in position])
        counts[together] = counts[together].min(initial=len(names))
    return counts


def tested_rows(trial: Trial) -> tuple[Ints, Ints]:
    """Test rows [n] that are scored, and their labels [n] as positions in the training classes (−1: of none)."""
    train, test = load(trial.data).train, test_images(trial.test)
    if trial.test.outside:
        return np.arange(len(test)), np.full(len(test), -1, dtype=np.int64)
    counts = dict(zip(train.class_names, counts_as(trial).tolist(), strict=True))
    known = same_classes(train.class_names, test.class_names)
    classes = [max((counts[same] for same in known.get(name, ())), default=-1) for name in test.class_names]
    mapped = np.array(classes, dtype=np.int64)[test.labels]
    rows = np.flatnonzero(mapped >= 0)
    return rows, mapped[rows]
