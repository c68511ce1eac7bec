"""ImageNet's classes by whichever of their names a data set uses: words, WordNet ids or positions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from monoeval.errors import MonoevalError


def same_classes(source: Sequence[str], target: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Class of `target` → the classes of `source` that are the same one, for those that have any.

    By name; where a side has WordNet ids (n01440764), or one alone has ImageNet's 1,000 positions 0 … 999, by the
    WordNet id of each ImageNet class. Words that two of its classes share name neither. A class may cover several:
    its name is then their ids with + between (n02708093+n03196217).
    """
    if _notation(source) == _notation(target) != "wordnet":
        return {name: (name,) for name in target if name in set(source)}
    of_source = {identity: name for name, ids in _wordnet_ids(source).items() for identity in ids}
    found = {
        name: tuple(dict.fromkeys(of_source[i] for i in ids if i in of_source))
        for name, ids in _wordnet_ids(target).items()
    }
    return {name: same for name, same in found.items() if same}


def in_words(names: Sequence[str]) -> tuple[str, ...]:
    """`names` as a text tower reads them: WordNet ids, or ImageNet's positions, as the words they stand for."""
    if _notation(names) == "words":
        return tuple(names)
    ids, words = _wordnet_ids(names), _words()
    return tuple(" or ".join(words.get(i, i) for i in ids[name]) for name in names)


def _notation(names: Sequence[str]) -> str:
    if all(re.fullmatch(r"n\d{8}(\+n\d{8})*", name) for name in names):
        return "wordnet"
    return "position" if set(names) == set(map(str, range(1000))) else "words"


def _wordnet_ids(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The WordNet ids of each of `names` that is made of them, or names a class of ImageNet."""
    notation = _notation(names)
    if notation == "wordnet":
        return {name: tuple(name.split("+")) for name in names}
    ids, words = _table()
    if notation == "position":
        return {name: (ids[int(name)],) for name in names}
    return {name: (words[name],) for name in names if name in words}


@cache
def _table() -> tuple[tuple[str, ...], dict[str, str]]:
    """WordNet ids in the order of ImageNet's positions, and words → id; read beside timm, which ships both."""
    ids = tuple((_folder() / "imagenet_synsets.txt").read_text(encoding="utf-8").split())
    words = _words()
    count = Counter(words[identity] for identity in ids)
    return ids, {words[identity]: identity for identity in ids if count[words[identity]] == 1}


@cache
def _words() -> dict[str, str]:
    """WordNet id → words, of ImageNet's classes and more."""
    lines = (_folder() / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    split = (line.partition("\t") for line in lines if line)
    return {identity: words for identity, _, words in split}


def _folder() -> Path:
    found = find_spec("timm")
    if found is None or found.origin is None:
        raise MonoevalError("The names of ImageNet's classes come with timm: install it with `pip install timm`.")
    return Path(found.origin).parent / "data" / "_info"
