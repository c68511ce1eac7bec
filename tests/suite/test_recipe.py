"""Recipes: defaults, expansion to arms, and errors that name the line and the nearest key."""

from itertools import product
from pathlib import Path

import pytest

from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import DataSpec
from monoeval.errors import UsageError
from monoeval.probes.spec import GCE, KNN, SCE, Logistic
from monoeval.scenarios import SCENARIOS
from monoeval.suite.changes import changed
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe import Recipe
from monoeval.suite.recipe_files import load_recipe, recipes

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


def test_the_smoke_recipe_has_every_scenario() -> None:
    assert {scenario.name for scenario in load_recipe("smoke").scenarios} == {*SCENARIOS}


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
        ("models: [resnet18]\nprobe:\n  folds: 0\nscenarios: [clean]\n", "line 3", "line 3: folds: input should"),
        ("models: [resnet18]\nscenarios: [clean]\nprobe: gec\n", "line 3", "'gce'"),
        ("models: [resnet18]\nscenarios: [clean]\nprobe:\n  folds: 5\n  kind: rigde\n", "line 5", "'ridge'"),
        (
            "models: [resnet18]\nscenarios: [clean]\nprobe:\n  kind: knn\n  neigbors: [5]\n",
            "line 5",
            "'neighbours'",
        ),
        (
            "models: [resnet18]\nscenarios: [clean]\nprobe: {kind: gce, xyz: 1}\n",
            "line 3",
            "balanced, folds, kind, l2, q",
        ),
        ("models: [resnet18]\nscenarios: [clean]\nprobe: {l3: [1]}\n", "line 3", "'l2'"),
        (
            "models: [resnet18]\nscenarios: [clean]\nprobe: {kind: gce, q: 7}\n",
            "line 3",
            "less than or equal to 1",
        ),
        ("models: [resnet18]\nscenarios: [clean]\nprobe: 5\n", "line 3", "a valid dictionary."),
        (
            "arms:\n  - name: a\n    backbone: b\n    probe: {kind: sce, btea: 1}\nscenarios: [clean]\n",
            "line 4",
            "'beta'",
        ),
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


def test_a_probe_is_a_kind_or_its_settings() -> None:
    def probe(value: object) -> object:
        return load_recipe({**SMALL, "probe": value}).probe

    assert probe("gce") == probe({"kind": "gce"}) == GCE()
    assert probe({"kind": "gce", "q": 0.5}) == GCE(q=0.5)
    assert probe({"l2": [0.1]}) == Logistic(l2=(0.1,))
    assert load_recipe(SMALL).probe == Logistic()


def test_the_probe_of_the_command_is_that_of_every_arm_and_keeps_the_settings_of_its_kind() -> None:
    arms = [{"name": "a", "backbone": "b", "probe": "sce"}, {"name": "c", "backbone": "b"}]
    listed = {"backbones": {"b": {"model": "resnet18"}}, "arms": arms, "scenarios": ["clean"]}
    recipe = load_recipe({**listed, "probe": {"kind": "gce", "q": 0.5}})
    assert [arm.probe for arm in recipe.arms] == [SCE(), None]
    assert [arm.probe for arm in changed(recipe, seeds=1).arms] == [SCE(), None]
    for kind, made in ((KNN(), KNN()), (GCE(), GCE(q=0.5))):
        after = changed(recipe, probe=kind)
        assert after.probe == made
        assert [arm.probe for arm in after.arms] == [None, None]
    assert changed(load_recipe(SMALL), probe=KNN()).resolved().probe == KNN()


def test_a_method_on_an_arm_has_the_probe_of_that_arm() -> None:
    """Else the method and its baseline would differ in more than their codes."""
    arms = [{"name": "a", "backbone": "b", "probe": "sce"}, {"name": "c", "backbone": "b"}]
    recipe = load_recipe({"backbones": {"b": {"model": "resnet18"}}, "arms": arms, "scenarios": ["clean"]})
    made = {arm.name: arm.probe for arm in changed(recipe, methods=[AdapterSpec(method="sae")]).arms}
    assert len(made) > 4
    assert {name: probe for name, probe in made.items() if probe} == {n: SCE() for n in made if n.startswith("a")}


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    text = (
        "models: [resnet18]\nmethods: [{method: sae, params: {learning_rate: 1e-3}}]\nscenarios: [clean]\n"
        "probe: {l2: [1E-4, 1e+2]}\n"
    )
    recipe = load_recipe(write(tmp_path, text)).resolved()
    assert recipe.probe.l2 == (1e-4, 1e2)
    assert any(arm.params.get("learning_rate") == 1e-3 for arm in recipe.arms)


def test_latents_add_three_arms_to_each_monosemantic_one_and_say_nothing_of_the_rest() -> None:
    fields = {"models": ["resnet50"], "methods": ["sae"], "scenarios": ["clean"], "latents": True}
    arms = {arm.name: arm for arm in load_recipe(fields).resolved().arms}
    plain = {arm.name for arm in load_recipe({**fields, "latents": False}).resolved().arms}
    added = {name: arms[name] for name in arms.keys() - plain}
    assert {name: (arm.latents, arm.baseline, arm.controls) for name, arm in added.items()} == {
        "resnet50 + sae, random latents": ("random", None, ()),
        "resnet50 + sae, most monosemantic": ("most", "resnet50 + sae, random latents", ()),
        "resnet50 + sae, least monosemantic": ("least", "resnet50 + sae, random latents", ()),
    }


def test_where_sparsity_emerges_a_control_takes_it_as_measured() -> None:
    fields = {"models": ["resnet50"], "methods": ["ncl-head"], "scenarios": ["clean"]}
    arms = {arm.name: arm for arm in load_recipe(fields).resolved().arms}
    control = arms["resnet50 + random-topk as ncl-head"]
    assert (control.match, control.params) == ("resnet50 + ncl-head", {})
    assert control.name in arms["resnet50 + ncl-head"].controls
    matched = {"name": "b", "backbone": "T", "method": "random-topk", "match": "a"}
    small = {"backbones": {"T": {"model": "resnet18"}}, "scenarios": ["clean"]}
    for arms, words in (
        (
            [{"name": "a", "backbone": "T"}, {**matched, "params": {"k": 3}}],
            "b takes its k from the arm it matches",
        ),
        ([{**matched, "name": "a", "match": "b"}, matched], "matches another arm"),
        ([matched], "no arm named 'a'"),
    ):
        with pytest.raises(UsageError, match=words):
            load_recipe({**small, "arms": arms})
    with pytest.raises(UsageError, match="b has no k to match with"):
        load_recipe({**small, "arms": [{"name": "a", "backbone": "T"}, {**matched, "method": "pca"}]}).resolved()


@pytest.mark.parametrize("objective", ["supcon", "nscl"])
@pytest.mark.parametrize(
    ("scenario", "levels"), [("label-noise", {}), ("few-shot", {"shots": [2]}), ("imbalance", {"ratios": [4]})]
)
def test_a_backbone_that_learned_from_clean_labels_meets_no_scenario_that_takes_them(
    objective: str, scenario: str, levels: dict[str, list[int]]
) -> None:
    plain = {"simclr": "supcon", "ncl": "nscl"}
    other = next(name for name, supervised in plain.items() if supervised == objective)
    study = {
        "data": {"name": "digits", "limit": 200},
        "backbones": {"B": {"pretrain": {"objective": objective}}, "plain": {"pretrain": {"objective": other}}},
        "arms": [{"name": "a", "backbone": "plain"}, {"name": "b", "backbone": "B"}],
        "scenarios": ["clean", {"name": scenario, **levels}],
    }
    sentence = rf"backbone B is pretrained by {objective} .* {scenario} .* by {other}, .* leave out {scenario}"
    with pytest.raises(UsageError, match=sentence):
        make_plan(load_recipe(study))
    alone = {**study, "arms": study["arms"][:1]}
    assert make_plan(load_recipe(alone)).scores
    kept = ["clean", {"name": "label-noise", "rates": [0]}, {"name": "input-noise", "levels": [0, 0.4]},
            {"name": "ood", "target": "digits-printed"}]  # fmt: skip
    assert make_plan(load_recipe({**study, "scenarios": kept})).scores


@pytest.mark.parametrize(
    ("pretrain", "says"),
    [
        ({"objective": "ncl", "stem": "cifar"}, "stem is of the ResNets of timm: leave it out"),
        ({"objective": "supcon", "rectifier": "relu"}, "rectifier is of ncl and nscl"),
        ({"objective": "simclr", "normalise_first": True}, "normalise_first changes nothing for simclr without"),
        ({"objective": "supcon", "network": "resnet18", "normalise_first": False}, "changes nothing for supcon"),
    ],
)
def test_settings_of_pretraining_that_do_nothing_are_refused(pretrain: dict[str, object], says: str) -> None:
    fields = {"backbones": {"B": {"pretrain": pretrain}}, "arms": [{"name": "b", "backbone": "B"}]}
    with pytest.raises(UsageError, match=says):
        load_recipe({**fields, "scenarios": ["clean"]})


def test_what_a_resolved_recipe_writes_out_is_not_refused() -> None:
    backbones = {
        str(place): {"pretrain": {"objective": objective, "network": network, "density": density}}
        for place, (objective, network, density) in enumerate(
            product(["simclr", "ncl", "supcon", "nscl"], ["tiny", "resnet18"], [0, 1])
        )
    }
    arms = [{"name": name, "backbone": name} for name in backbones]
    for adapt in ("full", "lora"):
        arms.append({"name": adapt, "backbone": "0", "probe": {"kind": "finetune", "adapt": adapt}})
    recipe = load_recipe({"backbones": backbones, "arms": arms, "scenarios": ["clean"]}).resolved()
    assert load_recipe(recipe.model_dump(mode="json")) == recipe
