"""ImageNet's classes by whichever of their names a data set uses: words, WordNet ids or positions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from monoeval.errors import MonoevalError


def same_classes(source: Sequence[str], target: Sequence[str]) -> Mapping[str, str]:
    """Class of `target` → the class of `source` that is the same one, for those that have one.

    By name; where one side has WordNet ids (n01440764), or ImageNet's 1,000 positions 0 … 999, and the other side
    does not, by the WordNet id of each ImageNet class. Words that two of its classes share name neither.
    """
    if _notation(source) == _notation(target):
        return {name: name for name in target if name in set(source)}
    of_source = {identity: name for name, identity in _wordnet_ids(source).items()}
    return {name: of_source[i] for name, i in _wordnet_ids(target).items() if i in of_source}


def _notation(names: Sequence[str]) -> str:
    if all(re.fullmatch(r"n\d{8}", name) for name in names):
        return "wordnet"
    return "position" if set(names) == set(map(str, range(1000))) else "words"


def _wordnet_ids(names: Sequence[str]) -> dict[str, str]:
    """The WordNet id of each of `names` that is one, or names a class of ImageNet."""
    notation = _notation(names)
    if notation == "wordnet":
        return {name: name for name in names}
    ids, words = _table()
    if notation == "position":
        return {name: ids[int(name)] for name in names}
    return {name: words[name] for name in names if name in words}


@cache
def _table() -> tuple[tuple[str, ...], dict[str, str]]:
    """WordNet ids in the order of ImageNet's positions, and words → id; read beside timm, which ships both."""
    found = find_spec("timm")
    if found is None or found.origin is None:
        raise MonoevalError("The names of ImageNet's classes come with timm: install it with `pip install timm`.")
    folder = Path(found.origin).parent / "data" / "_info"
    ids = tuple((folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split())
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines if line)
    count = Counter(words[identity] for identity in ids)
    return ids, {words[identity]: identity for identity in ids if count[words[identity]] == 1}
