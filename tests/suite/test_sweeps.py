"""Sweeps: what is tried, what is chosen by, what is refused, and what the ledger and the report say of it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monoeval.suite.frozen as frozen
from monoeval.adapters.registry import controls_for
from monoeval.adapters.sae import TopKSAE
from monoeval.adapters.spec import AdapterSpec
from monoeval.cli.main import run as command
from monoeval.errors import UsageError
from monoeval.probes.problem import LinearProbes
from monoeval.report.summary import summarise
from monoeval.suite import measures
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.run import run

SAE = {"width": 32, "steps": 5}
RECIPE: dict[str, Any] = {
    "name": "sweep",
    "data": {"name": "digits", "limit": 80},
    "seeds": 1,
    "backbones": {"CL": {"pretrain": {"objective": "simclr", "epochs": 1, "width": 16, "image_size": 8}}},
    "arms": [
        {"name": "CL", "backbone": "CL"},
        {"name": "swept", "backbone": "CL", "method": "sae", "params": {**SAE, "k": [1, 8]}, "baseline": "CL"},
        {"name": "k 1", "backbone": "CL", "method": "sae", "params": {**SAE, "k": 1}},
        {"name": "k 8", "backbone": "CL", "method": "sae", "params": {**SAE, "k": 8}},
        {"name": "matched", "backbone": "CL", "method": "random-topk", "match": "swept", "baseline": "CL"},
    ],
    "probe": {"l2": [1e-2]},
    "scenarios": [
        "clean",
        {"name": "label-noise", "rates": [0, 0.6]},
        {"name": "input-noise", "levels": [0, 0.4]},
    ],
}


def test_candidates_are_the_product_of_the_lists_in_their_order() -> None:
    spec = AdapterSpec(method="sae", params={"k": (4, 2), "steps": 7, "width_factor": (1, 2)})
    tried = [(c.params["k"], c.params["steps"], c.params["width_factor"]) for c in spec.candidates]
    assert tried == [(4, 7, 1), (4, 7, 2), (2, 7, 1), (2, 7, 2)]
    assert AdapterSpec(method="sae", params={"k": 4}).candidates == (AdapterSpec(method="sae", params={"k": 4}),)


def test_controls_have_the_same_sweep_and_so_the_same_budget() -> None:
    params = {"k": (4, 8), "width": 64, "learning_rate": (1e-3, 1e-2)}
    sizes = {"k": (4, 8), "width": 64}
    assert {c.method: c.params for c in controls_for(AdapterSpec(method="sae", params=params))} == {
        "random-topk": sizes,
        "relu": {},
    }
    heads = controls_for(AdapterSpec(method="ncl-head", params={"width": (16, 32)}))
    assert heads[0].params == {"width": (16, 32)}
    for method, twin in (("ncl-head", {"cl-head": 2}), ("sae-l1", {})):
        fields = {"models": ["resnet18"], "methods": [{"method": method, "params": {"width": [16, 32]}}]}
        recipe = load_recipe({**fields, "scenarios": ["clean"]}).resolved()
        assert {arm.name.removeprefix("resnet18 + "): recipe.tried(arm) for arm in recipe.arms} == {
            "resnet18": 1,
            method: 2,
            **twin,
            "relu": 1,
            f"random-topk as {method}": 2,
        }


def test_what_is_chosen_from_is_in_the_key() -> None:
    def keys(k: Any) -> set[str]:
        arm = {"name": "a", "backbone": "CL", "method": "sae", "params": {"k": k}}
        (group,) = make_plan(load_recipe({**RECIPE, "arms": [arm], "scenarios": ["clean"]})).groups
        return set(group.keys)

    assert keys([4]) == keys(4)
    made = [keys(4), keys([4, 8]), keys([8, 4]), keys([4, 8, 16])]
    assert len(set.union(*made)) == len(made)


def test_each_fit_uses_the_adapter_of_the_best_validation_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[float]] = []
    predicted: list[tuple[str, ...]] = []
    measured: list[int] = []
    best, predict, measure = frozen.best_candidate, frozen._predict, measures.measure

    def judged(choices: Any, rule: str) -> int:
        if len(choices) > 1:
            asked.append([choice.validation_loss for choice in choices])
        return best(choices, rule)

    def seen(codes: Any, rows: Any, labels: Any, probes: Any, members: Any, scored: Any) -> Any:
        predicted.append(tuple(members))
        return predict(codes, rows, labels, probes, members, scored)

    monkeypatch.setattr(frozen, "best_candidate", judged)
    monkeypatch.setattr(frozen, "_predict", seen)
    monkeypatch.setattr(measures, "measure", lambda *a, **k: measured.append(1) or measure(*a, **k))
    monkeypatch.setattr(measures, "_found", {})
    monkeypatch.setattr("monoeval.report.write", lambda _: None)  # its figures take seconds
    done = run(RECIPE, out=tmp_path)
    assert {row.status for row in done.rows} == {"ok"}
    of = {(row.arm, row.scenario, row.series, row.level): row for row in done.rows}
    swept = [row for row in done.rows if row.arm == "swept"]
    for row in swept:
        alone = of[f"k {row.chosen['k']}", row.scenario, row.series, row.level]
        assert (row.tried, alone.tried, alone.chosen) == (2, 1, {})
        assert (row.accuracy, row.log_loss, row.drift) == (alone.accuracy, alone.log_loss, alone.drift)
        assert {**alone.adapter, **row.adapter} == alone.adapter
    clean = asked[0]  # the first group of the swept arm: the fit on clean labels
    row = of["swept", "clean", "clean", 0]
    assert row.chosen == {"k": (1, 8)[int(np.argmin(clean))]}
    assert row.adapter["margin_low"] < row.adapter["margin"]
    assert {tuple(r.chosen) for r in done.rows if r.arm == "matched"} == {("k",)}

    # what several series show is one prediction, and what several draws share one measure
    assert all(len(set(members)) == len(members) for members in predicted)
    level_0 = [
        of["CL", s, n, 0]
        for s, n in (("clean", "clean"), ("input-noise", "gaussian"), ("label-noise", "symmetric"))
    ]
    assert len({row.accuracy for row in level_0}) == 1
    assert len({row.key for row in level_0}) == 3
    groups = make_plan(load_recipe(RECIPE)).groups
    adapters = {(row.arm, *row.chosen.values()) for row in done.rows}
    assert len(measured) <= len(adapters) < len(groups)

    (note,) = [n for n in summarise(done.folder).notes if n.startswith("Adapters tried")]
    assert "CL 1, swept 2, k 1 1, k 8 1, matched 2" in note
    k = of["swept", "clean", "clean", 0].chosen["k"]
    assert f"k {k} for {sum(row.chosen['k'] == k for row in swept)} scores" in note


def test_seeds_and_candidates_on_one_backbone_train_as_one_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[list[int]] = []
    fit = TopKSAE._fit_stack

    def seen(stack: Any, rows: Any) -> None:
        stacks.append([member.settings.k for member, _ in stack])
        fit(stack, rows)

    monkeypatch.setattr(TopKSAE, "_fit_stack", seen)
    monkeypatch.setattr("monoeval.report.write", lambda _: None)
    raw, swept = RECIPE["arms"][:2]
    fields = {**RECIPE, "arms": [raw, swept], "scenarios": ["clean"], "seeds": 3}
    frozen_one = {"CL": {"model": "test_vit", "weights": "random", "precision": "fp32"}}
    together = run({**fields, "backbones": frozen_one}, out=tmp_path)
    assert stacks == [[1, 1, 1, 8, 8, 8]]
    assert {row.status for row in together.rows} == {"ok"}
    stacks.clear()
    run(fields, out=tmp_path)  # each seed has its own features
    assert stacks == [[1, 8]] * 3


def test_margins_by_hand() -> None:
    class Held:
        def chunks(self, rows: Any) -> Any:
            yield from torch.eye(3)[rows].split(2)

    weights = torch.tensor([[[2.0, 0.0, 1.0], [1.0, 5.0, 1.5], [0.0, 1.0, 1.0]]])
    probes = LinearProbes(weights, torch.zeros(1, 3), [])
    # scores of the three rows: (2, 1, 0), (0, 5, 1), (1, 1.5, 1); margins 1, 4, -0.5
    found = measures.margins(Held(), np.arange(3), np.array([0, 1, 0]), probes, 0)  # type: ignore[arg-type]
    assert found == {"margin": 1.0, "margin_low": -0.5}


def test_measures_are_kept_by_key_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_found", {})
    monkeypatch.setattr(measures, "KEPT", 2)
    made: list[str] = []

    def ask(name: str) -> None:
        assert measures.once(name, lambda: made.append(name) or {"value": float(len(made))})["value"] > 0

    for name in "aabbacac":
        ask(name)
    assert made == ["a", "b", "c", "a"]
    with pytest.raises(ZeroDivisionError):
        measures.once("d", lambda: {"value": 1 / 0})
    assert "d" not in measures._found


def refused(arm: dict[str, Any], **fields: Any) -> str:
    arms = [{"name": "a", "backbone": "CL", "method": "sae", **arm}]
    with pytest.raises(UsageError) as caught:
        load_recipe({**RECIPE, "arms": arms, **fields}).resolved()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_there_must_be_rows_to_choose_by_and_one_adapter_where_its_latents_are_compared() -> None:
    swept = {"params": {"k": [2, 4]}}
    assert "paper-cached probe holds out no rows to choose by" in refused(swept, probe="paper-cached")
    assert "must be of one adapter" in refused(swept, latents=True)
    assert "must be of one adapter" in refused({**swept, "latents": "most"})


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("k: []", "sae: k is an empty list"),
        ("k: [4, 8, 4]", "sae: k lists 4 twice"),
        ("k: [4, '8']", "sae: k lists '8', and only numbers"),
        ("k: [true, 8]", "sae: k lists True, and only numbers"),
        ("k: [8, 64], width: [32, 128]", "sae: k is 64, more than the width of 32"),
        ("k: [8, 0]", "sae: k cannot be 0"),
        ("width: [16], width_factor: [2, 4]", "either width or width_factor"),
        ("ks: [2, 4]", "'k'"),
    ],
)
def test_a_wrong_sweep_in_a_recipe_is_one_sentence(
    params: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"models: [resnet18]\nmethods: [{{method: sae, params: {{{params}}}}}]\nscenarios: [clean]\n"
    )
    assert says in typed(monkeypatch, capsys, "suite", "--recipe", str(recipe), "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "sae", "--k", ""), "--k '' is not a number"),
        (("--method", "sae", "--k", "16,x"), "--k '16,x' is not a number"),
        (("--method", "sae", "--k", "16,16"), "k lists 16 twice"),
        (("--method", "sae", "--k", "2.5"), "--k '2.5' is not a number"),
        (("--method", "pca,relu", "--k", "16"), "--k is a setting of dictionaries such as sae, not of pca, relu"),
        (("--method", "l2norm", "--width-factor", "2,4"), "--width-factor is a setting of dictionaries"),
        (("--method", "sae", "--width-factor", "0"), "width_factor cannot be 0"),
        (("--method", "sae", "--width-factor", "inf"), "width_factor cannot be inf"),
        (("--method", "sea", "--k", "16"), "'sae'"),
        (("--k", "16,32"), "--k speaks of a method"),
        (("--method", "sae", "--k", "4,8", "--probe", "paper"), "paper probe holds out no rows"),
        (("--method", "sae", "--k", "4,8", "--latents"), "must be of one adapter"),
    ],
)
def test_a_wrong_sweep_on_the_command_line_is_one_sentence(
    arguments: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert says in typed(monkeypatch, capsys, "suite", *arguments, "--dry-run")


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"k": 800}, "k is 800 and the dictionary has 768 latents"),
        ({"k": [4, 200], "width_factor": [2, 8]}, "k is 200 and the dictionary has 192 latents"),
        ({"width_factor": 0.001}, "of 96 features is not one latent"),
    ],
)
def test_what_does_not_fit_the_features_is_told_before_there_are_any(
    params: dict[str, Any], says: str, tmp_path: Path, cache: Path
) -> None:
    network = {"model": "test_resnet", "weights": "random", "image_size": 32}
    study = {"models": [network], "methods": [{"method": "sae", "params": params}], "scenarios": ["clean"]}
    with pytest.raises(UsageError, match=says):
        run({**study, "seeds": 1, "data": {"name": "digits", "limit": 80}}, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert not (cache / "features").exists()


def test_backbones_are_loaded_beforehand_only_where_settings_might_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = {"weights": "random", "image_size": 32}
    models = [{"model": name, **network} for name in ("test_resnet", "test_vit")]
    study = {"models": models, "seeds": 1, "scenarios": ["clean"], "data": {"name": "digits", "limit": 40}}
    loaded, load = [], frozen.load_backbone

    def counted(spec: Any, **options: Any) -> Any:
        loaded.append(spec.model)
        return load(spec, **options)

    monkeypatch.setattr(frozen, "load_backbone", counted)
    frozen._loaded.cache_clear()
    run({**study, "methods": ["relu"]}, out=tmp_path)
    assert loaded == ["test_resnet", "test_vit"]
    loaded.clear()
    frozen._loaded.cache_clear()
    with pytest.raises(UsageError, match="test_vit: k is 600 and the dictionary has 512 latents"):
        run({**study, "methods": [{"method": "sae", "params": {"k": 600}}]}, out=tmp_path)
    assert loaded == ["test_resnet", "test_vit"]


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says on stderr, on one line, where it is typed wrongly."""
    monkeypatch.setattr(sys, "argv", ["monoeval", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command(debug=False)
    said = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2, said
    return said
