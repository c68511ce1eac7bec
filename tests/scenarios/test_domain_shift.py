"""Leave one domain out, other targets, and subpopulations: what is fitted on what, and scored on what."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from monoeval.data import load as loading
from monoeval.data.images import DataSpec
from monoeval.data.load import load_data
from monoeval.errors import UsageError
from monoeval.scenarios.ood import OutOfDomain
from monoeval.scenarios.subpopulation import Subpopulation
from monoeval.suite import plan, trial_rows
from monoeval.suite.changes import changed
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe

PARITY = {str(digit): "odd" if digit % 2 else "even" for digit in range(10)}


def pictures(root: Path, domains: str = "abc", classes: tuple[str, ...] = ("cat", "dog"), n: int = 4) -> Path:
    for d, domain in enumerate(domains):
        for c, name in enumerate(classes):
            (root / domain / name).mkdir(parents=True)
            for row in range(n):
                pixels = np.full((8, 8, 3), 60 * d + 20 * c + row, dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{row}.png")
    return root


def study(data: object, *scenarios: object, **more: object) -> dict[str, Any]:
    return {
        "data": data,
        "seeds": 2,
        "backbones": {"CL": {"pretrain": {"objective": "simclr", "epochs": 1, "width": 8, "image_size": 8}}},
        "arms": [{"name": "CL", "backbone": "CL"}, {"name": "relu", "backbone": "CL", "method": "relu"}],
        "scenarios": list(scenarios),
        **more,
    }


def test_each_domain_is_held_out_once(tmp_path: Path) -> None:
    data = DataSpec(name=str(pictures(tmp_path / "set")))
    for scenario in (OutOfDomain(), OutOfDomain(leave_one_out=True)):
        trials = list(scenario.trials(data, 0))
        assert [(t.series, t.level) for t in trials] == [(d, level) for d in "abc" for level in (0, 1)]
        assert [t.protocol for t in trials][:2] == ["ood/set/without-a", "ood/set/a"]
        for trial in trials:
            assert trial.data.domains == tuple(d for d in "abc" if d != trial.series)
            assert trial.test.data.domains == (trial.data.domains, (trial.series,))[int(trial.level)]
            assert trial.draw is None


@pytest.mark.parametrize("name", ["ood", "ood-detection"])
def test_a_target_with_rows_of_the_data_itself_is_refused(tmp_path: Path, name: str) -> None:
    folder = pictures(tmp_path / "set", classes=("cat", "dog", "eel"))
    own = {"name": str(folder), "domains": ["a", "b"]}
    for data, target in (
        ("digits", "digits"),
        ({"name": "digits", "limit": 50}, {"name": "digits", "limit": 60}),
        (own, {"name": f"{folder}/../set", "domains": ["b", "c"]}),
    ):
        with pytest.raises(UsageError, match=f"The target of {name} has rows of the data itself"):
            make_plan(load_recipe(study(data, {"name": name, "target": target})))
    make_plan(load_recipe(study(own, {"name": name, "target": {"name": str(folder), "domains": ["c"]}})))


def test_a_target_may_be_a_domain_or_another_set_or_several(tmp_path: Path) -> None:
    data = DataSpec(name=str(pictures(tmp_path / "set")), limit=7)
    other = pictures(tmp_path / "other", "x")
    trials = list(OutOfDomain.model_validate({"target": ["b", str(other / "x")]}).trials(data, 0))
    assert [t.series for t in trials] == ["b", "b", "set → x", "set → x"]
    assert trials[0].data.domains == ("a", "c")
    assert trials[2].data == data
    assert trials[3].test.data.limit == 7
    source = DataSpec(name=data.name, domains=("a",))
    target = {"name": data.name, "domains": ["c"]}
    any_to_any = list(OutOfDomain.model_validate({"target": target}).trials(source, 0))
    assert any_to_any[1].series == "set:a → set:c"
    assert len(trial_rows.tested_rows(any_to_any[1])[0]) == 8  # all rows of c
    assert len(trial_rows.tested_rows(any_to_any[0])[0]) == 2  # of a, what was held out


def test_bad_targets_are_one_sentence(tmp_path: Path) -> None:
    one = DataSpec(name=str(pictures(tmp_path / "set")), domains=("b",))
    with pytest.raises(UsageError, match=r"needs a target for .*has one domain \(b\).*--target"):
        list(OutOfDomain().trials(one, 0))
    with pytest.raises(UsageError, match=r"one domain \(b\), and holding it out leaves nothing"):
        list(OutOfDomain.model_validate({"target": "b"}).trials(one, 0))
    with pytest.raises(UsageError, match=r"has no domains to leave out.*--target"):
        list(OutOfDomain(leave_one_out=True).trials(DataSpec(name="digits"), 0))
    with pytest.raises(UsageError, match="give either target or leave_one_out"):
        load_recipe(study("digits", {"name": "ood", "target": "digits-printed", "leave_one_out": True}))
    pictures(tmp_path / "x/same", "a"), pictures(tmp_path / "y/same", "a")
    twice = [str(tmp_path / "x/same/a"), str(tmp_path / "y/same/a")]
    with pytest.raises(UsageError, match="Two targets of ood are called 'a'"):
        list(OutOfDomain.model_validate({"target": twice}).trials(one, 0))


def planned(root: Path) -> dict[tuple[str, tuple[str, ...], int | None], dict[str, object]]:
    """What is fitted, and the keys of its scores, of each arm, source and seed of the backbone."""
    groups = make_plan(load_recipe(study(str(root), "ood"))).groups
    return {
        (g.arm.name, g.data.domains or (), g.backbone_seed): {
            "fitted": [plan.codes_identity(g, *g.arm.adapter.candidates), plan.described(g, 0)["train"]],
            "source": g.keys[0],
            "target": g.keys[1],
        }
        for g in groups
    }


def test_only_the_other_domains_are_in_what_is_fitted(tmp_path: Path) -> None:
    """A changed picture of a domain changes all that is fitted where it is a source, and nothing elsewhere."""
    root = pictures(tmp_path / "set")
    before = planned(root)
    assert len(before) == 2 * 3 * 2  # arms × held-out domains × seeds of the backbone
    (root / "a/cat/0.png").write_bytes((root / "c/dog/3.png").read_bytes())
    loading._loaded.cache_clear()
    after = planned(root)
    for place, was in before.items():
        same = [name for name in was if was[name] == after[place][name]]
        assert same == ([] if "a" in place[1] else ["fitted", "source"])


def test_the_command_line_holds_out_domains_where_there_are_some(tmp_path: Path) -> None:
    data = DataSpec(name=str(pictures(tmp_path / "set")))
    recipe = changed(load_recipe("quickstart"), data=data)
    assert OutOfDomain() in recipe.scenarios
    plain = DataSpec(name=str(tmp_path / "set/a"))
    assert "ood" not in [s.name for s in changed(load_recipe("quickstart"), data=plain).scenarios]
    pacs = changed(load_recipe("pacs"), data=data)
    assert OutOfDomain(leave_one_out=True) in pacs.scenarios


def test_subpopulations_are_drawn_anew_for_each_seed() -> None:
    shift = Subpopulation(hierarchy=PARITY, train_fine=3)
    digits = DataSpec(name="digits")
    source, target = shift.trials(digits, 0)
    assert source.data == source.test.data == target.data
    assert source.protocol.removesuffix("@0") == target.protocol.removesuffix("@1")
    seen, held_out = source.data.subclasses or (), target.test.data.subclasses or ()
    assert sorted((*seen, *held_out)) == sorted(PARITY)
    assert len(seen) == 6
    assert (source.draw, target.draw) == (0, 0)
    assert next(shift.trials(digits, 1)).data.subclasses != seen
    plain = load_data(digits).test
    rows, labels = trial_rows.tested_rows(target)
    wanted = np.flatnonzero(np.isin(plain.labels, [int(name) for name in held_out]))
    assert len(rows) == len(wanted)
    assert np.array_equal(labels, plain.labels[wanted] % 2)


def test_hierarchies_of_files_that_are_called_alike_are_unlike_protocols(tmp_path: Path) -> None:
    def protocols(folder: str, superclass: dict[str, str]) -> list[str]:
        path = tmp_path / folder / "pets.yaml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(superclass))
        shift = Subpopulation(hierarchy=str(path), train_fine=1)
        return [trial.protocol for trial in shift.trials(DataSpec(name="digits"), 0)]

    mine, copied = protocols("a", PARITY), protocols("b", dict(reversed(PARITY.items())))
    others = protocols("c", {**PARITY, "0": "odd"})
    assert mine == copied
    assert not set(mine) & set(others)
    assert all(protocol.startswith("subpopulation/pets.yaml-") for protocol in (*mine, *others))
    known = next(Subpopulation().trials(DataSpec(name="digits"), 0))
    assert known.protocol == "subpopulation/cifar100/train-3@0"


def test_subpopulations_do_not_fit_any_data() -> None:
    with pytest.raises(UsageError, match="lacks classes of digits"):
        make_plan(load_recipe(study("digits", "subpopulation")))
    with pytest.raises(UsageError, match="leaves none to test on"):
        make_plan(load_recipe(study("digits", {"name": "subpopulation", "hierarchy": PARITY, "train_fine": 5})))


def test_only_shared_classes_of_imagenet_are_scored(tmp_path: Path) -> None:
    """A source by words, and targets by WordNet ids and by position, with classes that the other side lacks."""
    for name in ("tench, Tinca tinca", "goldfish, Carassius auratus", "my own"):
        pictures(tmp_path / "words", "-", (name,))
    words = str((tmp_path / "words/-").rename(tmp_path / "source"))
    ids = str(pictures(tmp_path / "ids", "i", ("n01440764", "n01443537", "n15075141"), n=2) / "i")
    source, target = OutOfDomain.model_validate({"target": ids}).trials(DataSpec(name=words), 0)
    rows, labels = trial_rows.tested_rows(target)
    assert len(rows) == 4
    assert labels.tolist() == [2, 2, 0, 0]  # goldfish is the first of the source's classes, tench the last
    assert len(trial_rows.tested_rows(source)[0]) == 2


def test_keys_of_corrupted_images_alone_know_the_version_of_the_corruptions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corruption = {"name": "corruption", "kinds": ["fog"], "severities": [3]}

    def keys() -> dict[str, str]:
        (first, *_) = make_plan(load_recipe(study("digits", "clean", corruption))).groups
        return {trial.protocol: k for trial, k in zip(first.trials, first.keys, strict=True)}

    before = keys()
    monkeypatch.setattr(plan, "CORRUPTIONS_VERSION", plan.CORRUPTIONS_VERSION + 1)
    changed_keys = {protocol for protocol, k in keys().items() if before[protocol] != k}
    assert changed_keys == {"corruption/onthefly/fog@3"}
