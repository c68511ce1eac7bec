"""Facts about the classes of CIFAR, against the numbers that were published with the data."""

from monoeval.data.hierarchies import CIFAR10_CLASSES, CIFAR10_PAIRS, CIFAR100_SUPERCLASS, confusions, cyclic

COARSE_OF_FINE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1,
    10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12,
    12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0,
    17, 8, 14, 13,
)  # fmt: skip
"""`coarse_label` of each `fine_label` in the files of CIFAR-100; both number their names in alphabetical order."""


def test_the_superclasses_of_cifar_100_are_those_in_its_files() -> None:
    coarse = sorted(set(CIFAR100_SUPERCLASS.values()))
    assert len(coarse) == 20
    assert [coarse.index(CIFAR100_SUPERCLASS[fine]) for fine in sorted(CIFAR100_SUPERCLASS)] == [*COARSE_OF_FINE]


def test_the_next_class_stays_in_its_superclass_and_five_steps_lead_back() -> None:
    step = cyclic(CIFAR100_SUPERCLASS)
    assert step["beaver"] == "dolphin"
    assert step["whale"] == "beaver"  # the last of its superclass goes to the first
    for fine in CIFAR100_SUPERCLASS:
        visited = [fine]
        for _ in range(4):
            visited.append(step[visited[-1]])
        assert len(set(visited)) == 5
        assert {CIFAR100_SUPERCLASS[name] for name in visited} == {CIFAR100_SUPERCLASS[fine]}
        assert step[visited[-1]] == fine


def test_pairs_of_cifar_10_are_among_its_classes() -> None:
    assert CIFAR10_PAIRS.keys() | set(CIFAR10_PAIRS.values()) <= CIFAR10_CLASSES
    assert CIFAR10_PAIRS["cat"] == "dog"
    assert CIFAR10_PAIRS["dog"] == "cat"
    assert "automobile" not in CIFAR10_PAIRS  # trucks become cars, and cars stay


def test_published_confusions_are_told_by_the_class_names() -> None:
    assert confusions(tuple(sorted(CIFAR10_CLASSES))) == CIFAR10_PAIRS
    assert confusions(tuple(sorted(CIFAR100_SUPERCLASS))) == cyclic(CIFAR100_SUPERCLASS)
    assert confusions(("cat", "dog")) is None
