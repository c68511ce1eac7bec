"""Labels by superclass, and only some of the classes below: what a shift of subpopulations is made of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from monoeval.data.hierarchies import CIFAR100_SUPERCLASS
from monoeval.data.images import ImageSet
from monoeval.errors import UsageError, nearest
from monoeval.keys import draw_seed, key

HIERARCHIES = {"cifar100": CIFAR100_SUPERCLASS}


def superclass_of(hierarchy: "str | dict[str, str]") -> dict[str, str]:
    """Class → superclass of a hierarchy: a known one, a YAML file, or the map itself.

    Raises UsageError for a name that is neither known nor a file, and for a map without two superclasses.
    """
    found = hierarchy if isinstance(hierarchy, dict) else HIERARCHIES.get(hierarchy) or _read(hierarchy)
    if len(set(found.values())) < 2:
        raise UsageError("A hierarchy needs two superclasses or more: map each class to its superclass.")
    return found


def _read(name: str) -> dict[str, str]:
    path = Path(name).expanduser()
    if path.suffix not in {".yaml", ".yml"}:
        raise UsageError(
            f"There is no hierarchy named {name!r}: use {', '.join(HIERARCHIES)}, or a YAML file that maps each "
            "class to its superclass."
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"The hierarchy {path} cannot be read ({reason}): check the file.") from error
    if not isinstance(found, dict) or any(isinstance(v, dict | list) or v is None for v in found.values()):
        raise UsageError(f"{path} is no hierarchy: write one line a class, such as `beaver: aquatic_mammals`.")
    return {str(fine): str(coarse) for fine, coarse in found.items()}


def to_superclasses(images: ImageSet, hierarchy: "str | dict[str, str]", kept: tuple[str, ...] | None) -> ImageSet:
    """`images` with superclasses, sorted by name, as labels, and only those of the classes `kept` (None: all).

    Raises UsageError unless the hierarchy has exactly the classes of the images.
    """
    superclass = superclass_of(hierarchy)
    called = hierarchy if isinstance(hierarchy, str) else "of the recipe"
    if missing := [name for name in images.class_names if name not in superclass]:
        raise UsageError(
            f"The hierarchy {called} lacks classes of {images.name} ({_some(missing)}): add a superclass for each."
        )
    if unknown := [name for name in superclass if name not in images.class_names]:
        near = nearest(unknown[0], images.class_names)
        advice = f"did you mean {near!r}?" if near else "remove them."
        raise UsageError(
            f"The hierarchy {called} has classes that {images.name} lacks ({_some(unknown)}): {advice}"
        )
    if strangers := [name for name in kept or () if name not in superclass]:
        raise UsageError(f"{images.name} has no classes {_some(strangers)}: choose subclasses among its own.")
    coarse = sorted(set(superclass.values()))
    place = np.array([coarse.index(superclass[name]) for name in images.class_names], dtype=np.int64)
    chosen = np.array([kept is None or name in kept for name in images.class_names])
    made = images.take(np.flatnonzero(chosen[images.labels]))
    fingerprint = key([made.fingerprint, place.tolist(), coarse])
    return replace(made, labels=place[made.labels], class_names=tuple(coarse), fingerprint=fingerprint)


def drawn_subclasses(superclass: dict[str, str], count: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`count` classes of each superclass, drawn by `seed`, and all others; both sorted.

    A draw depends on the superclass, its classes and the seed alone. Raises UsageError where a superclass has no
    class left over.
    """
    members: dict[str, list[str]] = {}
    for fine, coarse in sorted(superclass.items()):
        members.setdefault(coarse, []).append(fine)
    chosen: set[str] = set()
    for coarse, alike in members.items():
        if count >= len(alike):
            raise UsageError(
                f"The superclass {coarse!r} has {len(alike)} classes, so training on {count} leaves none to test "
                "on: choose a smaller train_fine, for example {name: subpopulation, train_fine: 1}."
            )
        order = np.random.default_rng(draw_seed("subclasses", coarse, seed)).permutation(len(alike))
        chosen |= {alike[place] for place in order[:count]}
    return tuple(sorted(chosen)), tuple(sorted(superclass.keys() - chosen))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
