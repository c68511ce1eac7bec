"""The recipes of the paper's study: what they are made of, that they can be planned, and what data replaces."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.spec import PretrainSpec, paper
from monoeval.cli.main import app
from monoeval.data.hierarchies import CIFAR100_SUPERCLASS
from monoeval.data.images import DataSpec
from monoeval.probes.spec import GCE
from monoeval.suite import finetune, frozen
from monoeval.suite.changes import changed
from monoeval.suite.forecast import forecast
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe, recipes

PAPERS = sorted(name for name in recipes() if name.startswith("paper-"))
ONE_BY_ONE = ("paper-cifar100", "paper-cifar100-finetune", "paper-imagenet100", "paper-imagenet100-finetune")
STAND_IN = DataSpec(name="digits", limit=200)
SHIFT = {"paper-cifar100": ["subpopulation"], "paper-imagenet100": ["ood"]}
"""What stands for the paper's shifted sets; in miniature it would take too long to pretrain for."""


@pytest.fixture(scope="module")
def of_hundred_classes(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    """Four images of each class of CIFAR-100 in a table of another name."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    labels = sorted(CIFAR100_SUPERCLASS) * 4
    folder = tmp_path_factory.mktemp("small")
    pq.write_table(pa.table({"image": [stream.getvalue()] * len(labels), "label": labels}), folder / "all.parquet")
    return DataSpec(name=str(folder))


def test_the_papers_study_comes_along() -> None:
    assert sorted((*ONE_BY_ONE, "paper-cifar100-cpu")) == PAPERS


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_recipe_can_be_planned(name: str) -> None:
    recipe = changed(load_recipe(name), data=STAND_IN, seeds=2)
    plan = make_plan(recipe)
    assert {group.arm.name for group in plan.groups} == {arm.name for arm in recipe.arms}
    keys = [k for group in plan.groups for k in group.keys]
    trained = {group.backbone_seed for group in plan.groups}
    assert trained == {0, 1}  # every seed is another pair of backbones
    assert plan.scores == len(keys) > 100


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_backbones_are_pretrained_as_in_the_paper_and_differ_in_the_objective_alone(
    name: str,
) -> None:
    on_imagenet = {"epochs": 100, "learning_rate": 0.3, "batch_size": 128, "image_size": 224}
    settings = {"network": "resnet18", **(on_imagenet if "imagenet" in name else {})}
    made = {label: backbone.pretrain for label, backbone in load_recipe(name).backbones.items()}
    assert made == {
        "CL": PretrainSpec.model_validate({"objective": "simclr", **paper("simclr"), **settings}),
        "NCL": PretrainSpec.model_validate({"objective": "ncl", **paper("ncl"), **settings}),
    }


@pytest.mark.parametrize("name", [name for name in PAPERS if "finetune" not in name])
def test_the_family_is_both_ideas_against_raw_features_and_every_control(name: str) -> None:
    recipe = load_recipe(name)
    arms = {arm.name: arm for arm in recipe.arms}
    wanted = {
        (scenario, arm, against)
        for scenario in ("label-noise", "input-noise", *SHIFT.get(name, []))
        for arm in ("CL + SAE", "NCL")
        for against in (None, *arms[arm].controls)
    }
    if name not in SHIFT:
        wanted |= {("label-noise", "CL NCE", None), ("label-noise", "NCL NCE", None)}  # it finetunes, too
    assert {(claim.scenario, claim.arm, claim.against) for claim in recipe.family} == wanted
    assert len(wanted) == len(recipe.family) == (18 if name in SHIFT else 14)
    for arm in ("CL + SAE", "NCL"):
        assert arms[arm].probe is None
        assert any(arms[control].method == "random-topk" for control in arms[arm].controls)


def test_a_control_has_the_size_of_the_autoencoder_beside_it() -> None:
    for name in PAPERS:
        arms = {arm.name: arm for arm in load_recipe(name).arms}
        for arm in arms.values():
            if arm.method == "sae":
                control = next(arms[c] for c in arm.controls if arms[c].method == "random-topk")
                assert control.params == {k: v for k, v in arm.params.items() if k in {"width_factor", "k"}}
                assert control.probe == arm.probe


def test_no_features_are_extracted_for_finetuning(tmp_path: Path) -> None:
    recipe = changed(load_recipe("paper-cifar100-finetune"), data=STAND_IN, seeds=1)
    told = forecast(recipe, tmp_path)
    assert told["images to extract"] == 0
    assert told["backbones to pretrain"] == 2
    # 4 arms, on clean labels, 5 rates of noise and 3 shares of the rows, at 3 learning rates and the one chosen;
    # noisy inputs train nothing, and a share of 1 is the clean labels
    assert told["networks to finetune"] == 4 * (1 + 5 + 3) * (3 + 1)


def test_a_finetuned_arm_stays_one_whatever_probe_or_method_is_asked_for() -> None:
    recipe = load_recipe("paper-cifar100-cpu")
    probed = {arm.name: arm.learner for arm in changed(recipe, probe=GCE()).resolved().arms}
    assert {name for name, learner in probed.items() if learner == "finetune"} == {"CL CE", "CL NCE", "NCL NCE"}
    more = changed(recipe, methods=[AdapterSpec(method="pca")]).resolved().arms
    assert {"CL + pca", "NCL + pca", "CL CE"} <= {arm.name for arm in more}
    assert "CL CE + pca" not in {arm.name for arm in more}


@pytest.mark.parametrize(("name", "arms"), [("paper-cifar100", 12), ("paper-cifar100-finetune", 4)])
def test_the_shift_of_classes_has_backbones_of_its_own(name: str, arms: int, of_hundred_classes: DataSpec) -> None:
    recipe = load_recipe(name)
    shifts = [scenario for scenario in recipe.scenarios if scenario.name == "subpopulation"]
    recipe = recipe.model_copy(update={"seeds": 2, "scenarios": tuple(shifts), "family": ()})
    groups = make_plan(
        changed(recipe, data=of_hundred_classes)
    ).groups  # whose classes are looked at, not its name
    assert len(groups) == arms * 2
    assert all(len(g.data.subclasses or ()) == 3 * 20 and len(g.keys) == 2 for g in groups)
    trained = {(g.backbone_seed, g.data.model_dump_json()) for g in groups}
    assert len(trained) == 2  # each seed draws other classes, which its backbones alone have seen


def test_the_shift_of_classes_is_left_out_with_other_classes(caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe("paper-cifar100")
    assert "subpopulation" in [s.name for s in changed(recipe, seeds=1).scenarios]
    other = changed(recipe, data=STAND_IN)
    assert {s.name for s in recipe.scenarios} - {s.name for s in other.scenarios} == {"subpopulation"}
    assert len(other.family) == 12
    assert "subpopulation scenario is left out: its hierarchy is of the classes of cifar100" in caplog.text


def test_other_data_keep_the_recipes_limit_and_its_note_says_so(caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe("paper-cifar100-cpu")
    there = changed(recipe, data=DataSpec(name="/somewhere/cifar100"))
    assert (there.data.limit, there.note) == (recipe.data.limit, recipe.note)
    assert "--limit" in caplog.text
    other = changed(recipe, data=DataSpec(name="./photos"), limit=70)
    assert other.data == DataSpec(name="./photos", limit=70)
    assert other.note == f"This recipe is of cifar100, and was run on photos. {recipe.note}"


def test_the_command_plans_the_study_in_miniature() -> None:
    asked = ["suite", "-r", "paper-cifar100-cpu", "--data", "digits", "--limit", "60", "--dry-run", "--json"]
    told = json.loads(CliRunner().invoke(app, asked).stdout)
    assert (told["backbones to pretrain"], told["networks to finetune"]) == (6, 45)
    assert told["scores to make"] == told["scores in all"] == 11 * 3 * 20


def test_every_arm_of_the_miniature_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hardly any training: what the scores are is tested elsewhere."""
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path))
    recipe = changed(load_recipe("paper-cifar100-cpu"), data=DataSpec(name="digits", limit=60), seeds=1)
    fields = recipe.model_dump(mode="json")
    for backbone in fields["backbones"].values():
        backbone["pretrain"] |= {"epochs": 1, "image_size": 8, "batch_size": 30}
    for arm in fields["arms"]:
        if arm["probe"]:
            arm["probe"] |= {"epochs": 1}
        if arm["method"] == "sae":
            arm["params"] |= {"steps": 5}
    fields |= {"family": [], "probe": "ncm", "scenarios": [{"name": "label-noise", "rates": [0, 0.4]}]}
    rows = []
    for group in make_plan(load_recipe(fields)).groups:
        learner = finetune if group.arm.learner == "finetune" else frozen
        rows += [made.row for made in learner.score(group, "cpu")]
    assert {row.arm for row in rows} == {arm.name for arm in recipe.arms}
    assert {row.status for row in rows} == {"ok"}
    l0 = {row.arm: row.adapter["l0"] for row in rows if row.level == 0 and "l0" in row.adapter}
    assert l0["CL + SAE"] <= 16
    assert l0["CL + random-topk as NCL"] == pytest.approx(l0["NCL"], rel=0.1)
