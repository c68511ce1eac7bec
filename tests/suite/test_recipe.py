"""Recipes: defaults, expansion to arms, and errors that name the line and the nearest key."""

from pathlib import Path

import pytest

from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import DataSpec
from monoeval.errors import UsageError
from monoeval.suite.recipe import Recipe, changed, load_recipe, recipes

SMALL = {"name": "small", "models": ["resnet18"], "methods": ["sae"], "scenarios": ["clean"]}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_that_comes_along_is_valid_and_has_a_note(name: str) -> None:
    recipe = load_recipe(name).resolved()
    assert recipe.note
    assert recipe.arms


def test_models_times_methods_expand_to_arms_with_matched_controls() -> None:
    sae = AdapterSpec(method="sae", params={"width_factor": 2, "k": 8})
    recipe = Recipe.model_validate({**SMALL, "models": ["resnet18", "resnet50"], "methods": [sae]}).resolved()
    arms = {arm.name: arm for arm in recipe.arms}
    assert {"resnet18", "resnet18 + sae", "resnet18 + random-topk", "resnet18 + relu", "resnet50 + sae"} <= set(
        arms
    )
    assert arms["resnet18 + sae"].baseline == "resnet18"
    assert "resnet18 + random-topk" in arms["resnet18 + sae"].controls
    control = arms["resnet18 + random-topk"].params
    assert (control["width_factor"], control["k"]) == (2, 8)


def test_two_settings_of_one_method_are_two_arms() -> None:
    methods = [AdapterSpec(method="sae", params={"k": k}) for k in (8, 16)]
    names = [arm.name for arm in Recipe.model_validate({**SMALL, "methods": methods}).resolved().arms]
    assert len(names) == len(set(names))
    assert sum(name.startswith("resnet18 + sae") for name in names) == 2


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("data: digits\nmodel: [resnet18]\nscenarios: [clean]\n", "line 2", "'models'"),
        ("models: [resnet18]\nscenarios:\n  - name: label-noise\n    rate: [0.5]\n", "line 4", "'rates'"),
        ("models: [resnet18]\nscenarios: [label-nose]\n", "line 2", "'label-noise'"),
        ("models: [{model: resnet18, wieghts: random}]\nscenarios: [clean]\n", "line 1", "'weights'"),
        ("models: [resnet18]\nscenarios:\n  - clean\n  - {name: few-shot, shots: [zero]}\n", "line 4", "integer"),
        ("models: [resnet18]\nseeds: 0\nscenarios: [clean]\n", "line 2", "greater than or equal to 1"),
        ("models: [resnet18]\nscenarios: [clean, clean]\n", "line 1", "twice"),
        ("scenarios: [clean]\n", "line 1", "models"),
        ("arms: [{name: a, backbone: b}]\nbackbones: {}\nscenarios: [clean]\n", "line 1", "'b'"),
        ("data: [digits\n", "line 2", "YAML"),
        ("models: resnet18\nscenarios: [clean]\n", "line 1", "valid list"),
        ("models: [resnet18]\nscenarios: [{rates: [0.5]}]\n", "line 2", "needs a name, one of"),
        ("models: [resnet18]\nprobe:\n  l2: []\nscenarios: [clean]\n", "line 3", "at least 1"),
        ("models: [resnet18]\nprobe:\n  folds: 0\nscenarios: [clean]\n", "line 3", "2"),
        ("models: [resnet18]\nscenarios: [{name: few-shot, shots: []}]\n", "line 2", "at least 1"),
        ("name: ../up\nmodels: [resnet18]\nscenarios: [clean]\n", "line 1", "name"),
        ("backbones: {a: {pretrain: {objective: ncl, width: -3}}}\nscenarios: [clean]\n", "line 1", "width"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_with_the_line(tmp_path: Path, text: str, line: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text))
    sentence = str(caught.value)
    assert "mine.yaml" in sentence
    assert line in sentence
    assert hint in sentence
    assert "\n" not in sentence


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(UsageError, match="not int"):
        load_recipe(5)  # type: ignore[arg-type]


def test_with_models_nothing_is_pretrained() -> None:
    recipe = changed(load_recipe("quickstart"), models=[BackboneSpec(model="resnet18")]).resolved()
    assert list(recipe.backbones) == ["resnet18"]
    assert all(backbone.pretrain is None for backbone in recipe.backbones.values())
    assert {"sae", "random-topk"} <= {arm.method for arm in recipe.arms}


def test_a_method_on_a_recipe_with_arms_keeps_its_backbones() -> None:
    recipe = changed(load_recipe("quickstart"), methods=[AdapterSpec(method="l2norm")]).resolved()
    assert list(recipe.backbones) == ["CL", "NCL"]
    assert {"CL", "NCL", "CL + l2norm", "NCL + l2norm"} <= {arm.name for arm in recipe.arms}


def test_scenarios_and_data_replace_those_of_the_recipe() -> None:
    recipe = changed(load_recipe("quickstart"), scenarios=["label-noise"], seeds=2, limit=100)
    assert [s.name for s in recipe.scenarios] == ["label-noise"]
    assert (recipe.seeds, recipe.data.limit) == (2, 100)
    elsewhere = changed(load_recipe("quickstart"), data=DataSpec(name="./folder"))
    assert "ood" not in [s.name for s in elsewhere.scenarios]
    targeted = changed(load_recipe("quickstart"), data=DataSpec(name="./a"), target=DataSpec(name="./b"))
    assert "ood" in [s.name for s in targeted.scenarios]


def test_the_note_does_not_name_the_run_but_the_content_does() -> None:
    one, other = (Recipe.model_validate({**SMALL, "note": note}) for note in ("a", "b"))
    assert one.key() == other.key()
    assert one.key() != Recipe.model_validate({**SMALL, "seeds": 4}).key()


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    text = (
        "models: [resnet18]\nmethods: [{method: sae, params: {learning_rate: 1e-3}}]\nscenarios: [clean]\n"
        "probe: {l2: [1E-4, 1e+2]}\n"
    )
    recipe = load_recipe(write(tmp_path, text)).resolved()
    assert recipe.probe.l2 == (1e-4, 1e2)
    assert any(arm.params.get("learning_rate") == 1e-3 for arm in recipe.arms)
