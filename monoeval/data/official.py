"""ImageNet-C and CIFAR-C as they were published: corrupted copies of a clean test set, in a local folder."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from monoeval.data.arrays import array, mapped, row_of
from monoeval.data.corruptions import Table
from monoeval.data.decode import to_rgb
from monoeval.data.fingerprint import file_keys
from monoeval.data.folders import SUFFIXES
from monoeval.data.images import Image, ImageSet, Ints
from monoeval.errors import MonoevalError, UsageError
from monoeval.keys import key
from monoeval.spec import Spec

SEVERITIES = 5


class Official(Spec):
    """Which published copy stands in for the clean test images."""

    folder: str
    """Holds glass_blur/3/class/image (ImageNet-C), or glass_blur.npy and labels.npy (CIFAR-C)."""
    kind: str
    severity: int
    """0: the clean images themselves."""


def layout(folder: str, kinds: Sequence[str], severities: Sequence[int]) -> Table:
    """Which of the two data sets `folder` holds.

    Raises UsageError, naming them, where any of `kinds` at any of `severities` is not there.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"There is no folder {folder}: name the one that ImageNet-C or CIFAR-C was unpacked to.")
    arrays = any(root.glob("*.npy"))
    if arrays:
        missing = [
            name for name in ("labels.npy", *(f"{kind}.npy" for kind in kinds)) if not (root / name).exists()
        ]
    else:
        missing = [f"{kind}/{s}" for kind in kinds for s in severities if not (root / kind / str(s)).is_dir()]
    if missing:
        listed = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        raise UsageError(
            f"{folder} lacks {listed}: unpack them there, or leave them out with `kinds` and `severities`."
        )
    return "cifar-c" if arrays else "imagenet-c"


def official_images(clean: ImageSet, official: Official) -> ImageSet:
    """`clean`, with the published copies in place of its images; rows, ids and labels stay, so that scores pair.

    In CIFAR-C a row is found by its number in the clean test split. In ImageNet-C it is found by class folder and
    file name or, where the clean rows are numbered, by the number that ends the file name, from 1. Labels must
    then agree. Images of ImageNet-C are what resizing and cropping left, so backbones take them whole, as their
    authors do; one of CIFAR-C is resized and cropped as the clean one is. Raises UsageError where rows cannot be
    matched, and MonoevalError for arrays that are not images.
    """
    if official.severity == 0:
        return clean
    root = Path(official.folder).expanduser()
    if (root / "labels.npy").exists():
        return _from_arrays(clean, official, root)
    return _from_files(clean, official, root)


def _from_arrays(clean: ImageSet, official: Official, root: Path) -> ImageSet:
    path = root / f"{official.kind}.npy"
    pixels, labels = mapped(str(path.resolve())), array(root / "labels.npy")
    size = len(labels) // SEVERITIES
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) != SEVERITIES * size:
        raise MonoevalError(
            f"{path} is {pixels.dtype} {list(pixels.shape)}, not uint8 images in five severities with the "
            f"{len(labels)} labels of labels.npy: download it again."
        )
    numbers = _row_numbers(clean)
    if numbers is None or numbers.max(initial=0) >= size:
        raise _unmatched(clean, official, "its rows are not numbered as those of the CIFAR test set")
    rows = (official.severity - 1) * size + numbers
    wrong = int((np.asarray(labels[rows], dtype=np.int64) != clean.labels).sum())
    if wrong:
        raise _unmatched(clean, official, f"labels.npy differs from the labels of {wrong} of {len(rows)} rows")
    content = file_keys(root, [path.name])
    read = partial(_row, str(path.resolve()), rows)
    return _copy(clean, official, [*content, *map(str, rows)], read, cropped=False)


def _from_files(clean: ImageSet, official: Official, root: Path) -> ImageSet:
    folder = root / official.kind / str(official.severity)
    files = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES)
    numbers = _row_numbers(clean)
    if numbers is None:
        by_name = {(p.parent.name, p.stem): p for p in files}
        parts = [(Path(name).parent.name, Path(name).stem) for name in clean.ids.tolist()]
        found = [by_name.get(part) for part in parts]
    else:
        by_number = {int(n.group()): p for p in files if (n := re.search(r"\d+$", p.stem))}
        found = [by_number.get(number + 1) for number in numbers.tolist()]
    paths = [path for path in found if path is not None]
    if len(paths) < len(clean):
        lost = clean.ids[found.index(None)]
        raise _unmatched(clean, official, f"{len(clean) - len(paths)} of {len(clean)} are not there, first {lost}")
    pairs = set(zip((p.parent.name for p in paths), clean.labels.tolist(), strict=True))
    if len(pairs) > min(len({folder for folder, _ in pairs}), len({label for _, label in pairs})):
        raise _unmatched(clean, official, "images in one class folder have unlike labels, or the other way round")
    names = tuple(p.relative_to(root).as_posix() for p in paths)
    read = partial(_file, str(root.resolve()), names)
    return _copy(clean, official, [*file_keys(root, names), "cropped"], read, cropped=True)


def _copy(
    clean: ImageSet, official: Official, content: Sequence[str], read: partial[Image], *, cropped: bool
) -> ImageSet:
    return ImageSet(
        name=f"{clean.name} ({official.kind} {official.severity}, published)",
        labels=clean.labels,
        class_names=clean.class_names,
        ids=clean.ids,
        groups=clean.groups,
        fingerprint=key([list(content), clean.ids.tolist(), clean.labels.tolist(), list(clean.class_names)]),
        read=read,
        cropped=cropped,
    )


def _unmatched(clean: ImageSet, official: Official, why: str) -> UsageError:
    place = f"{official.kind} at severity {official.severity} in {official.folder}"
    return UsageError(
        f"The test images of {clean.name} do not match {place} ({why}): name the clean data that it was made from."
    )


def _row_numbers(clean: ImageSet) -> Ints | None:
    """Where rows of a table lie in it, which is what their ids say; None for ids that are file names."""
    found = [re.fullmatch(r"[^/]+/(\d{7})", name) for name in clean.ids.tolist()]
    numbers = [int(match.group(1)) for match in found if match]
    return np.array(numbers, dtype=np.int64) if len(numbers) == len(found) else None


def _row(path: str, rows: Ints, row: int) -> Image:
    return row_of(path, int(rows[row]))


def _file(root: str, names: tuple[str, ...], row: int) -> Image:
    return to_rgb(Path(root) / names[row])
