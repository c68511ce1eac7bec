"""Folders of images: one folder a class, in split folders or not."""

import logging
import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from monoeval.data.decode import to_rgb
from monoeval.data.fingerprint import file_keys
from monoeval.data.images import DataSpec, Image
from monoeval.data.source import NoClassesError, Source, Splits, holds_runs
from monoeval.errors import UsageError

log = logging.getLogger("monoeval")

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")


@dataclass(frozen=True)
class _Read:
    """Reads images by path; the state of a pickled copy is these paths."""

    root: str
    names: tuple[str, ...]

    def __call__(self, row: int) -> Image:
        return to_rgb(Path(self.root) / self.names[row])


def folder_splits(root: Path, spec: DataSpec) -> Splits:
    """The splits of an image folder; where it has none, one split with the empty name.

    `train` beside class folders of its own makes a split layout, and so does naming folders as splits. Folders of
    class folders that share names are domains, each given as a split. Raises UsageError where there is no class
    folder.
    """
    inside = _folders(root)
    if not inside:
        raise NoClassesError(
            f"{root} has no class folders: put each class's images in a folder of their own ({root}/cat/1.jpg)."
        )
    for asked_for, option in ((spec.domain_column, "--domain-column"), (spec.group_column, "--group-column")):
        if asked_for is not None:
            raise UsageError(f"{root} holds folders of images, which have no columns: leave out {option}.")
    asked = {name for name in (spec.train_split, spec.test_split) if name}
    # A split folder without class folders (unlabelled test images) is of no use here.
    splits = [name for name in inside if name.lower() in SPLIT_FOLDERS and _folders(root / name)]
    if not asked and _no_classes(root, inside):
        named = [name for name in inside if name.lower() in SPLIT_FOLDERS]
        raise NoClassesError(
            f"{root} has splits ({', '.join(named)}) and no classes to train on: put each class's images in a "
            f"folder of their own ({root / named[-1]}/cat/1.jpg)."
        )
    if asked:
        splits = inside
    elif not any(name.lower() in SPLIT_FOLDERS[:2] for name in splits):
        domains = _domains(root, inside)
        if not domains and len(splits) == len(inside) == 1:
            return {splits[0]: partial(class_folders, root, splits[0])}  # a test split alone, as of a target
        if not domains:
            return {"": partial(class_folders, root)}
        if spec.domains is None:
            _say_domains(str(root), ", ".join(domains))
        splits = domains
    return {name: partial(class_folders, root, name) for name in splits}


def _no_classes(root: Path, inside: list[str]) -> bool:
    """Whether all folders are splits without class folders, or the training split is, and there are others."""
    named = [name for name in inside if name.lower() in SPLIT_FOLDERS]
    flat = [name for name in named if not _folders(root / name)]
    return flat == inside or (len(named) > 1 and any(name.lower() in SPLIT_FOLDERS[:2] for name in flat))


def unlabelled_images(root: Path, split: str | None) -> Source | None:
    """The images of a folder without classes, as if of one: of `split`, of `train` where it has that, else all.

    None where there are two class folders or more, or no images.
    """
    inside = _folders(root)
    train = split or next((name for name in inside if name.lower() in SPLIT_FOLDERS[:2]), "")
    classes = _folders(root / train) if train else [name for name in inside if name.lower() not in SPLIT_FOLDERS]
    if len(classes) > 1:
        return None
    here = sorted(entry.name for entry in os.scandir(root / train) if _is_image(entry.name))
    names = [str(Path(train) / name) for name in here]
    names += [name for only in classes for name in _images(root, root / train / only)]
    return _source(root, names, [0] * len(names), ["any"]) if names else None


def _domains(root: Path, inside: list[str]) -> list[str]:
    """`inside`, where they are domains: each holds class folders, at least two of them in all, and no image."""
    shared: set[str] | None = None
    for name in inside:
        found = set(_folders(root / name)) - set(SPLIT_FOLDERS)
        shared = found if shared is None else shared & found
        if len(shared) < 2:  # for most sets after the first folder, which may hold thousands of images
            return []
    has_images = any(_is_image(entry.name) for name in inside for entry in os.scandir(root / name))
    return [] if has_images or len(inside) < 2 else inside


@cache
def _say_domains(root: str, domains: str) -> None:
    """Said once, as folders of a class may also have folders that are called alike."""
    log.info("%s is read as domains (%s), each with class folders.", root, domains)


def _folders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        return [name for name in found if not holds_runs(root / name)]
    except OSError as error:
        raise UsageError(f"{root} cannot be read ({error.strerror}): make it readable, then run again.") from error


def class_folders(root: Path, split: str = "") -> Source:
    """The images under `root`/`split`, one folder a class; raises UsageError where there is none."""
    folder = root / split
    names: list[str] = []
    labels: list[int] = []
    classes: list[str] = []
    for name in _folders(folder):
        images = _images(root, folder / name)
        if not images:
            log.warning("%s has no images and is left out.", folder / name)
            continue
        labels += [len(classes)] * len(images)
        classes.append(name)
        names += images
    if not names:
        raise NoClassesError(
            f"{folder} has no images in class folders ({', '.join(s[1:] for s in SUFFIXES)}): check the path."
        )
    loose = sum(_is_image(entry.name) for entry in os.scandir(folder))
    if loose and len(classes) > 1:
        log.warning("%d images in %s lie in no class folder and are left out.", loose, folder)
    return _source(root, names, labels, classes)


def _source(root: Path, names: list[str], labels: list[int], classes: list[str]) -> Source:
    return Source(
        labels=np.array(labels, dtype=np.int64),
        names=tuple(classes),
        ids=np.array(names),
        keys=file_keys(root, names),
        read=_Read(str(root.resolve()), tuple(names)),
    )


def _images(root: Path, folder: Path) -> list[str]:
    """Images anywhere under `folder`, relative to `root`, sorted; hidden and other files are passed over."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}): make it readable, then run again.")

    found: list[str] = []
    for where, _, inside in os.walk(folder, onerror=refuse, followlinks=True):
        prefix = Path(where).relative_to(root).as_posix()
        found += [f"{prefix}/{name}" for name in inside if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
