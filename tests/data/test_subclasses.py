"""Superclasses as labels, and draws of the classes below them."""

from pathlib import Path

import numpy as np
import pytest

from monoeval.data.images import DataSpec
from monoeval.data.load import load_data
from monoeval.data.subclasses import drawn_subclasses, superclass_of
from monoeval.errors import UsageError

PARITY = {str(digit): "odd" if digit % 2 else "even" for digit in range(10)}


def test_labels_become_superclasses_and_only_the_chosen_classes_stay() -> None:
    fine = load_data(DataSpec(name="digits")).train
    every = load_data(DataSpec(name="digits", hierarchy=PARITY)).train
    assert every.class_names == ("even", "odd")
    assert np.array_equal(every.labels, fine.labels % 2)
    some = load_data(DataSpec(name="digits", hierarchy=PARITY, subclasses=("1", "4"))).train
    rows = np.flatnonzero(np.isin(fine.labels, [1, 4]))
    assert np.array_equal(some.ids, fine.ids[rows])
    assert np.array_equal(some.labels, fine.labels[rows] % 2)
    assert np.array_equal(some.read(3), fine.read(int(rows[3])))
    assert len({fine.fingerprint, every.fingerprint, some.fingerprint}) == 3


def test_a_limit_is_of_what_was_kept() -> None:
    data = load_data(DataSpec(name="digits", hierarchy=PARITY, subclasses=("1", "4"), limit=20))
    assert np.bincount(data.train.labels).tolist() == [10, 10]


def test_a_hierarchy_may_be_a_file_and_its_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "parity.yaml"
    path.write_text("".join(f"{digit}: {name}\n" for digit, name in PARITY.items()))
    assert superclass_of(str(path)) == PARITY
    assert DataSpec.model_validate({"name": "digits", "hierarchy": {0: "even", 1: "odd"}}).hierarchy == {
        "0": "even",
        "1": "odd",
    }


def test_draws_take_as_many_of_each_superclass_and_leave_the_others() -> None:
    superclass = superclass_of("cifar100")
    for seed in range(5):
        seen, held_out = drawn_subclasses(superclass, 3, seed)
        assert set(seen) | set(held_out) == set(superclass)
        assert not set(seen) & set(held_out)
        assert {sum(superclass[f] == coarse for f in seen) for coarse in superclass.values()} == {3}
        turned = dict(reversed(list(superclass.items())))
        assert drawn_subclasses(turned, 3, seed) == (seen, held_out)
    assert len({drawn_subclasses(superclass, 3, seed)[0] for seed in range(5)}) == 5


def test_every_class_is_held_out_about_equally_often() -> None:
    superclass = {f"{c}{i}": c for c in "ab" for i in range(5)}
    count = dict.fromkeys(superclass, 0)
    for seed in range(1000):
        for name in drawn_subclasses(superclass, 3, seed)[1]:
            count[name] += 1
    # binomial(1000, 2/5): sd 15.5, so 5 sd are 78
    assert all(abs(n - 400) < 78 for n in count.values())


def refused(match: str, **fields: object) -> None:
    with pytest.raises(UsageError, match=match):
        load_data(DataSpec.model_validate({"name": "digits", **fields}))


def test_bad_hierarchies_are_one_sentence(tmp_path: Path) -> None:
    refused(
        r"lacks classes of digits \(3\): add a superclass", hierarchy={k: v for k, v in PARITY.items() if k != "3"}
    )
    refused(r"classes that digits lacks \(11\): did you mean '1'", hierarchy={**PARITY, "11": "odd"})
    refused("no hierarchy named 'cifar10'", hierarchy="cifar10")
    refused("cannot be read", hierarchy=str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    refused("is no hierarchy: write one line a class", hierarchy=str(tmp_path / "list.yaml"))
    refused("two superclasses or more", hierarchy=dict.fromkeys(PARITY, "digit"))
    refused("no classes 77: choose", hierarchy=PARITY, subclasses=["77"])
    refused("Subclasses are of a hierarchy", subclasses=["1"])
    with pytest.raises(UsageError, match="'even' has 5 classes, so training on 5 leaves none"):
        drawn_subclasses(PARITY, 5, 0)
