"""The finetuning learner in a study: what its scores are, how arms are told apart, and its wrong inputs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.preprocess import Preprocess
from monoeval.backbones.resolve import resolve
from monoeval.backbones.sources import build
from monoeval.backbones.spec import BackboneSpec
from monoeval.cli.main import app
from monoeval.data.images import DataSpec
from monoeval.data.load import load_data
from monoeval.data.splits import shots
from monoeval.errors import UsageError
from monoeval.probes.problem import Problem
from monoeval.probes.spec import Ridge
from monoeval.report.summary import summarise
from monoeval.scenarios.label_noise import LabelNoiseScenario
from monoeval.suite.changes import changed, finetuning
from monoeval.suite.forecast import forecast
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe import Recipe
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.run import Run, run
from monoeval.training.finetune import Finetuner, Training
from monoeval.training.pictures import Pictures
from monoeval.training.settings import FinetuneSpec

DATA = {"name": "digits", "limit": 60}
SETTINGS = {"kind": "finetune", "epochs": 2, "learning_rates": [1e-3], "batch_size": 16}
STUDY = {
    "name": "tuned",
    "data": DATA,
    "seeds": 2,
    "backbones": {"vit": {"model": "test_vit", "weights": "random", "image_size": 32, "precision": "fp32"}},
    "arms": [
        {"name": "ce", "backbone": "vit", "probe": SETTINGS},
        {"name": "nce", "backbone": "vit", "probe": {**SETTINGS, "objective": "nce"}, "baseline": "ce"},
    ],
    "scenarios": [
        {"name": "label-noise", "rates": [0, 0.4]},
        {"name": "input-noise", "kinds": ["gaussian"], "levels": [0.4]},
        {"name": "few-shot", "shots": [2], "repeats": 1},
    ],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONOEVAL_CACHE", str(folder / "cache"))
        return run(STUDY, out=folder / "runs")


def test_a_score_is_that_of_the_training_it_names(study: Run) -> None:
    row = next(r for r in study.rows if r.arm == "nce" and r.level == 0 and r.adapter_seed == 1)
    spec = BackboneSpec.model_validate(STUDY["backbones"]["vit"])
    network, data = build(resolve(spec), spec, 0), load_data(DataSpec.model_validate(DATA))

    def squares(images: object, count: int) -> torch.Tensor:
        read = [network.preprocess.image(images.read(i)) for i in range(count)]
        return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)

    made = Finetuner(
        network,
        FinetuneSpec.model_validate({**SETTINGS, "objective": "nce"}),
        squares(data.train, len(data.train)),
        10,
        name="vit",
        device=torch.device("cpu"),
    )
    made.fit(Problem(np.arange(len(data.train)), data.train.labels), seed=1)
    expected = made.logits(squares(data.test, len(data.test))).argmax(1).numpy()
    given = pq.read_table(study.folder / str(row.predictions)).column("prediction").to_numpy()
    assert (given == expected).mean() > 0.95  # the normalisation is rounded in another order
    assert row.rows == len(data.test)


def test_every_condition_is_scored_for_every_seed(study: Run) -> None:
    assert not study.failed
    places = {(r.arm, r.adapter_seed, r.protocol) for r in study.rows}
    assert len(places) == len(study.rows) == 2 * 2 * 4
    assert {r.probe["learning_rate"] for r in study.rows} == {1e-3}


def test_images_that_no_trial_trains_on_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))
    seen: list[tuple[int, np.ndarray]] = []
    fit = Finetuner.fit

    def watched(self: Finetuner, problem: Problem, *, seed: int) -> Training:
        mean = self.squares.take(torch.from_numpy(problem.rows)).float().mean(dim=(1, 2, 3))
        seen.append((len(self.squares), mean[torch.from_numpy(np.argsort(problem.labels, kind="stable"))].numpy()))
        return fit(self, problem, seed=seed)

    monkeypatch.setattr(Finetuner, "fit", watched)
    few = {"name": "few-shot", "shots": [1], "repeats": 1}
    run({**STUDY, "name": "few", "seeds": 1, "arms": STUDY["arms"][:1], "scenarios": [few]}, out=tmp_path)
    ((held, means),) = seen
    assert held == 20  # one row of each class to train on, and one to tune on
    data = load_data(DataSpec.model_validate(DATA)).train
    rows, _ = shots(data.labels, data.class_names, 1, 1, 0, 0)
    spec = BackboneSpec.model_validate(STUDY["backbones"]["vit"])
    square = build(resolve(spec), spec, 0).preprocess.image
    expected = [square(data.read(int(row))).mean() for row in rows[np.argsort(data.labels[rows])]]
    np.testing.assert_allclose(means, expected, rtol=1e-5)


@pytest.mark.parametrize("where", ["__init__", "fit", "logits"])
def test_where_memory_runs_out_a_smaller_batch_is_named(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(Finetuner, where, full)
    for batch_size, advice in (
        (16, "try batch_size=8, or give a smaller --image-size"),
        (2, "give a smaller --im"),
    ):
        arms = [{"name": "ce", "backbone": "vit", "probe": {**SETTINGS, "batch_size": batch_size, "epochs": 1}}]
        study = {**STUDY, "seeds": 1, "arms": arms, "scenarios": ["clean"]}
        (row,) = run(study, out=tmp_path / str(batch_size)).failed
        assert row.error is not None
        assert "not enough memory for finetuning test_vit" in row.error
        assert f"in batches of {batch_size} images: {advice}" in row.error


def test_each_image_is_decoded_once_for_all_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))
    decoded: list[int] = []
    prepare = Preprocess.image
    monkeypatch.setattr(Preprocess, "image", lambda self, *a, **k: (decoded.append(1), prepare(self, *a, **k))[1])
    study = {**STUDY, "arms": [{**arm, "probe": {**arm["probe"], "epochs": 1}} for arm in STUDY["arms"]]}
    expected = None
    for room, count in ((2**40, 120), (0, 1440)):
        memory = SimpleNamespace(available=room)
        monkeypatch.setattr(
            "monoeval.training.pictures.psutil", SimpleNamespace(virtual_memory=lambda m=memory: m)
        )
        monkeypatch.setattr("monoeval.suite.finetune.PICTURES", Pictures())
        decoded.clear()
        made = run(study, out=tmp_path / str(room))
        assert not made.failed
        assert len(decoded) == count
        scores = [(row.key, row.accuracy, row.log_loss) for row in made.rows]
        assert expected in (None, scores)
        expected = scores


def test_a_dry_run_counts_trainings_and_no_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))
    rates = {**STUDY["arms"][1], "probe": {**SETTINGS, "objective": "nce", "learning_rates": [1e-3, 1e-2]}}
    expected = forecast(load_recipe({**STUDY, "arms": [STUDY["arms"][0], rates]}), tmp_path)
    # fits of a seed: at two rates of noise (input-noise has that at rate 0) and at two shots; each once, or thrice
    assert expected["networks to finetune"] == 2 * 3 * (1 + 3)
    assert expected["images to extract"] == expected["images in the cache"] == 0


def test_objectives_are_judged_against_each_other(study: Run) -> None:
    verdicts = [c.kind for table in summarise(study.folder).tables for c in table.comparisons]
    assert len(verdicts) == 3
    assert "no verdict" not in verdicts


def test_the_report_says_that_seeds_redraw_the_finetuning(study: Run) -> None:
    found = {d.varied for t in summarise(study.folder).tables for c in t.comparisons for d in c.differences}
    assert found == {("finetuning",), ("finetuning", "draw")}


def test_a_finished_study_is_not_trained_again(study: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Finetuner, "fit", never)
    assert run(STUDY, out=study.folder.parent).made == 0


def test_baselines_differ_from_their_arm_in_one_thing() -> None:
    recipe = finetuning(
        [BackboneSpec(model="m")], objectives=["ce", "nce"], adapts=["full", "lora", "monolora"], settings={}
    )
    assert {arm.name: arm.baseline for arm in recipe.arms} == {
        "m ce full": None,
        "m nce full": "m ce full",
        "m ce lora": None,
        "m nce lora": "m ce lora",
        "m ce monolora": "m ce lora",
        "m nce monolora": "m nce lora",
    }


def test_settings_are_those_of_every_arm_and_a_rank_of_those_that_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr("monoeval.cli.finetune.show_plan", lambda study, *_: seen.append(study))
    options = ["--objective", "ce", "--adapt", "full,lora", "--params", "rank=4,batch_size=32,flip=true"]
    CliRunner().invoke(app, ["finetune", "--model", "test_vit", "--dry-run", *options], catch_exceptions=False)
    made = {arm.probe.adapt: arm.probe for arm in seen[0].arms if isinstance(arm.probe, FinetuneSpec)}
    assert {(p.batch_size, p.flip) for p in made.values()} == {(32, True)}
    assert (made["full"].rank, made["lora"].rank) == (8, 4)


def test_views_that_became_others_have_another_key() -> None:
    """Mirrored views of whole images were jittered in their aspect ratio; all other settings keep their keys."""

    def keys(**fields: object) -> set[str]:
        arms = [{"name": "ce", "backbone": "vit", "probe": {**SETTINGS, **fields}}]
        groups = make_plan(load_recipe({**STUDY, "seeds": 1, "arms": arms, "scenarios": ["clean"]})).groups
        return {key for group in groups for key in group.keys}

    with pytest.MonkeyPatch.context() as patch:
        now = [keys(), keys(crop=1), keys(flip=True), keys(crop=1, flip=True)]
        patch.setattr("monoeval.suite.plan.FinetuneSpec", type(None))  # as if none were marked
        before = [keys(), keys(crop=1), keys(flip=True), keys(crop=1, flip=True)]
    assert now[:3] == before[:3]
    assert now[3] != before[3]


def test_without_lora_a_non_negative_monolora_is_held_against_its_cross_entropy() -> None:
    recipe = finetuning(
        [BackboneSpec(model="m")], objectives=["ce", "nce"], adapts=["full", "monolora"], settings={}
    )
    held = {arm.name: arm.baseline for arm in recipe.arms}
    assert held["m nce monolora"] == "m ce monolora"
    assert held["m ce monolora"] is None


def test_probes_and_methods_of_the_command_leave_finetuned_arms_as_they_are() -> None:
    recipe = load_recipe({**STUDY, "arms": [*STUDY["arms"], {"name": "raw", "backbone": "vit"}]})
    tuned = [arm for arm in recipe.arms if arm.learner == "finetune"]
    made = changed(recipe, probe=Ridge(), methods=[AdapterSpec(method="relu")])
    assert [arm for arm in made.arms if arm.learner == "finetune"] == tuned
    assert [arm.name for arm in made.arms] == ["ce", "nce", "raw", "raw + relu"]


def test_zero_shot_stands_beside_frozen_arms_alone() -> None:
    backbones = {"vit": {"model": "open_clip:ViT-S-32-alt", "weights": "random"}}
    arms = [*STUDY["arms"], {"name": "raw", "backbone": "vit"}]
    recipe = load_recipe({**STUDY, "backbones": backbones, "arms": arms, "zero_shot": {"alphas": []}}).resolved()
    assert [arm.name for arm in recipe.arms] == ["ce", "nce", "raw", "raw zero-shot"]


def test_a_finetuned_arm_has_no_adapter() -> None:
    arms = [{"name": "ce", "backbone": "vit", "method": "sae", "probe": SETTINGS}]
    with pytest.raises(UsageError, match="ce finetunes its backbone and so has no adapter: leave out method"):
        load_recipe({**STUDY, "arms": arms})


def test_what_changes_probes_and_adapters_leaves_finetuned_arms_alone() -> None:
    recipe = load_recipe(STUDY)
    assert changed(recipe, probe=load_recipe({**STUDY, "probe": "ridge"}).probe).arms == recipe.arms
    with pytest.raises(
        UsageError, match="--method adds arms beside raw features, and no arm of the recipe has them"
    ):
        changed(recipe, methods=[AdapterSpec(method="relu")])
    both = load_recipe({**STUDY, "arms": [*STUDY["arms"], {"name": "raw", "backbone": "vit"}]})
    made = changed(both, methods=[AdapterSpec(method="relu")])
    assert [arm.name for arm in made.arms] == ["ce", "nce", "raw", "raw + relu"]


def test_no_zero_shot_arm_is_made_of_a_finetuned_one() -> None:
    backbones = {"vit": {"model": "clip_vit_b32", "weights": "random"}}
    tuned = {**STUDY, "backbones": backbones, "zero_shot": True}
    with pytest.raises(UsageError, match="zero_shot stands beside raw features, which no arm has"):
        load_recipe(tuned).resolved()
    both = load_recipe({**tuned, "arms": [*STUDY["arms"], {"name": "raw", "backbone": "vit"}]}).resolved()
    assert [arm.name for arm in both.arms][2:] == ["raw", "raw zero-shot", "raw wise 0.5"]


def test_the_command_reads_domains_and_an_oracle_as_a_suite_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr("monoeval.cli.finetune.show_plan", lambda study, *_: seen.append(study))
    options = ["--data", "./photos", "--domain-column", "style", "--domains", "a,b", "--select-on", "clean-val"]
    CliRunner().invoke(app, ["finetune", "--model", "test_vit", "--dry-run", *options], catch_exceptions=False)
    (study,) = seen
    assert study.data == DataSpec(name="./photos", domain_column="style", domains=("a", "b"))
    chosen = {s.name: s.select_on for s in study.scenarios if isinstance(s, LabelNoiseScenario)}
    assert chosen == {"label-noise": "clean-val"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "Which backbone? Name one with --model"),
        (["--model", "test_vit", "--select-on", "clean-val"], "--select-on is of the label-noise scenario"),
        (["--model", "test_vit", "--domain-column", "style"], "digits has no domains: leave out --domains and"),
        (["--model", "test_vit", "--domains", "photo"], "digits has no domains"),
        (["--model", "test_vit", "--objective", "mse"], "should be 'ce' or 'nce'"),
        (["--model", "test_vit", "--adapt", "half"], "should be 'full', 'lora' or 'monolora'"),
        (["--model", "test_vit", "--learning-rate", "0"], "should be greater than 0"),
        (["--model", "test_vit", "--learning-rate", "fast"], "should be a valid number"),
        (["--model", "test_vit", "--params", "rank=4"], "rank is of low-rank changes: leave it out, or"),
        (["--model", "test_vit", "--params", "crop=2"], "crop: input should be less than or equal to 1"),
        (["--model", "test_vit", "--params", "corp=1"], "no setting named 'corp': did you mean 'crop'"),
        (["--model", "test_vit", "--params", "flip"], "written as NAME=VALUE, for example batch_size=32"),
        (["--model", "test_resnet", "--weights", "random", "--image-size", "32", "--adapt", "lora"],
         "has no linear layers for lora to change: finetune all of it, with --adapt full or"),
    ],
)  # fmt: skip
def test_wrong_commands_get_a_sentence(
    options: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the last one is found out once its run has begun
    command = ["finetune", "--limit", "60", "--scenario", "clean", *options]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UsageError)
    assert sentence in str(error)
