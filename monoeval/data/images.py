"""The contract of the data room: an `ImageSet`, and the specifications of data and of changes to images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from monoeval.keys import key
from monoeval.spec import Spec

Image = NDArray[np.uint8]  # [H, W, 3], RGB
Ints = NDArray[np.int64]


def _texts(value: object) -> object:
    """YAML reads a bare 0 or yes as a number or a truth value; names of classes are text."""
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else value


Hierarchy = Annotated[str | dict[str, str], BeforeValidator(_texts)]
"""`cifar100`, a YAML file, or the map itself: name of a class → name of its superclass."""


class DataSpec(Spec):
    """Where images and labels come from; `monoeval list data` names the kinds."""

    name: str
    """An embedded set, a hub id, or a folder (images, parquet, or a saved `datasets` folder)."""
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    domain_column: str | None = None
    """Which column of a table names the domain of a row; one called `domain` needs not be named."""
    group_column: str | None = None
    """Which column of a table names what rows belong to (a writer, a patient, a video): statistics take the rows
    of one for a cluster, and what is held out is whole ones."""
    domains: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Only images of these domains, in every split; None: all there are."""
    hierarchy: Hierarchy | None = None
    """Labels become superclasses."""
    subclasses: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Only images of these classes of the hierarchy, in every split; None: of all."""
    limit: int | None = None
    """At most this many rows a split, stratified by class and nested (a smaller limit is a subset)."""

    @property
    def label(self) -> str:
        """The name without the folders that lead to it, and the split or domains where some were chosen."""
        chosen = self.test_split or self.train_split or "+".join(self.domains or ())
        return (PurePath(self.name).name or self.name) + (f":{chosen}" if chosen else "")


def named_data(value: object) -> object:
    """Read a bare name as the specification of that data set, wherever a recipe names data."""
    return {"name": value} if isinstance(value, str) else value


class Transform(Spec):
    """A change to images: a random view, a corruption, or noise.

    The stage says to what: the image as it was read (`original`), the uint8 square that the backbone's
    preprocessing makes of it (`image`), or the normalised tensor (`tensor`).
    """

    name: str
    stage: Literal["original", "image", "tensor"]
    severity: float
    seed: int = 0


@dataclass(frozen=True)
class ImageSet:
    """Labelled images that are read one at a time, so that a set may be larger than memory.

    `read(row)` returns a uint8 RGB array [H, W, 3]; it is picklable and safe to call from several threads.
    `ids` are unique within the set and name an image wherever the set lies; `groups` are rows that belong
    together (a writer, a video), clustered by the statistics; a domain is none of them, as the few there are would
    leave nothing to estimate a spread from. `fingerprint` hashes pixels, labels and order.
    """

    name: str
    labels: Ints  # [N], positions in class_names
    class_names: tuple[str, ...]
    ids: NDArray[np.str_]  # [N]
    groups: Ints | None  # [N]
    fingerprint: str
    read: Callable[[int], Image]
    cropped: bool = False
    """Images are what resizing and cropping left of others, so a backbone takes them whole."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Ints) -> "ImageSet":
        """The same set restricted to `rows` [n], in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            labels=self.labels[rows],
            ids=self.ids[rows],
            groups=None if self.groups is None else self.groups[rows],
            fingerprint=key([self.fingerprint, rows.tolist()]),
            read=RowsOf(self.read, rows),
        )


@dataclass(frozen=True)
class RowsOf:
    """Reads the rows `rows` [n] of a larger set."""

    read: Callable[[int], Image]
    rows: Ints

    def __call__(self, row: int) -> Image:
        return self.read(int(self.rows[row]))


@dataclass(frozen=True)
class Data:
    """A data set as the suite uses it. A source with one split only is divided by a fixed rule."""

    train: ImageSet
    test: ImageSet
    whole: ImageSet | None = None
    """All images of a source with one split only, which is divided between the other two."""
    domains: tuple[str, ...] = ()
    """The domains that its images are of, those chosen where some were; empty where it has none."""
