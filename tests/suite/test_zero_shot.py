"""The zero-shot arm against open_clip's own steps, and what averages of it with a probe come to."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import BackboneSpec
from monoeval.backbones.text import class_weights
from monoeval.data.embedded import digits
from monoeval.data.prompts import TEMPLATES, prompts
from monoeval.data.splits import stratified_limit
from monoeval.errors import UsageError
from monoeval.probes.problem import Choice, LinearProbes
from monoeval.probes.spec import WiSE, ZeroShot
from monoeval.suite.changes import changed
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe import Recipe
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.run import Run, run
from monoeval.suite.zero_shot import averaged

ARCHITECTURE = "ViT-S-32-alt"  # the smallest there is, at one patch an image
CPU = torch.device("cpu")
NAMES = ("ice_cream", "sea lion", "wolf")
TWO = ("a photo of a {}.", "art of the {}.")
RECIPE: dict[str, Any] = {
    "name": "text",
    "data": {"name": "digits", "limit": 60},
    "seeds": 2,
    "backbones": {"CLIP": {"image_size": 32, "precision": "fp32"}},
    "arms": [
        {"name": "CLIP", "backbone": "CLIP"},
        {"name": "CLIP + l2norm", "backbone": "CLIP", "method": "l2norm"},
    ],
    "zero_shot": {"templates": TWO, "alphas": [0, 1]},
    "probe": {"l2": [1e-2, 1e-1], "folds": 2},
    "scenarios": [
        {"name": "label-noise", "rates": [0.4]},
        {"name": "few-shot", "shots": [1], "repeats": 2},
        {"name": "ood", "target": {"name": "digits-printed", "limit": 60}},
    ],
}


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(5)
    return open_clip.create_model(ARCHITECTURE, force_image_size=32).eval()


@pytest.fixture(scope="module")
def spec(model: Any, tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    """The model as a checkpoint in the format that open_clip's own are in."""
    path = tmp_path_factory.mktemp("weights") / "open_clip_model.safetensors"
    save_file(model.state_dict(), path)
    return BackboneSpec(model=f"open_clip:{ARCHITECTURE}", weights=str(path), image_size=32, precision="fp32")


@pytest.fixture(scope="module")
def finished(spec: BackboneSpec, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("zero-shot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONOEVAL_CACHE", str(folder / "cache"))
        return run({**RECIPE, "backbones": {"CLIP": spec.model_dump()}}, out=folder / "runs")


def by_hand(model: Any, names: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
    """Class embeddings [C, D] with open_clip's tokenizer and text tower, one prompt at a time."""
    tokenize = open_clip.get_tokenizer(ARCHITECTURE)
    rows = []
    with torch.no_grad():
        for name in names:
            said = [template.format(name.replace("_", " ")) for template in templates]
            each = [model.encode_text(tokenize([text]))[0] for text in said]
            mean = torch.stack([vector / vector.norm() for vector in each]).mean(0)
            rows.append(mean / mean.norm())
    return torch.stack(rows)


def test_class_weights_are_the_scaled_mean_of_unit_prompts(
    model: Any, spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_hand(model, NAMES, TWO) * model.logit_scale.exp().detach()
    torch.testing.assert_close(class_weights(spec, NAMES, TWO, CPU), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr("monoeval.backbones.text._weights", None)  # the second time it is read from the cache
    torch.testing.assert_close(class_weights(spec, NAMES, TWO, CPU), expected, rtol=1e-4, atol=1e-4)


def test_wordnet_ids_are_asked_for_in_words(model: Any, spec: BackboneSpec) -> None:
    words = ("tench, Tinca tinca", "goldfish, Carassius auratus")
    asked = class_weights(spec, ("n01440764", "n01443537"), TWO, CPU)
    expected = by_hand(model, words, TWO) * model.logit_scale.exp().detach()
    torch.testing.assert_close(asked, expected, rtol=1e-4, atol=1e-4)


def test_random_weights_are_those_of_the_image_tower() -> None:
    random = BackboneSpec(model=f"open_clip:{ARCHITECTURE}", weights="random", image_size=32, precision="fp32")
    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE, force_image_size=32).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(load_backbone(random, device="cpu")(x), model.encode_image(x))
        expected = by_hand(model, NAMES[:1], TWO[:1]) * model.logit_scale.exp()
    torch.testing.assert_close(class_weights(random, NAMES[:1], TWO[:1], CPU), expected, rtol=1e-4, atol=1e-4)


def kept(finished: Run, arm: str, **fields: object) -> dict[str, Any]:
    """The predictions of the arm's first row with these fields."""
    row = next(r for r in finished.rows if r.arm == arm and all(getattr(r, k) == v for k, v in fields.items()))
    return dict(pq.read_table(finished.folder / str(row.predictions)).to_pydict())


def test_predictions_are_those_of_the_model_asked_by_hand(finished: Run, model: Any, spec: BackboneSpec) -> None:
    images = digits().test
    images = images.take(stratified_limit(images.labels, 60))
    preprocess = load_backbone(spec, device="cpu").preprocess
    with torch.no_grad():
        batch = preprocess.tensor(np.stack([preprocess.image(images.read(i)) for i in range(len(images))]))
        features = torch.nn.functional.normalize(model.encode_image(batch), dim=1)
        logits = model.logit_scale.exp() * features @ by_hand(model, images.class_names, TWO).T
    found = kept(finished, "CLIP zero-shot", scenario="ood", level=0)
    # features are kept in half precision
    np.testing.assert_allclose(-np.array(found["energy"]), logits.logsumexp(1).numpy(), atol=5e-3)
    top = logits.topk(2, 1).values
    clear = (top[:, 0] - top[:, 1] > 5e-3).numpy()
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(np.array(found["prediction"])[clear], logits.argmax(1).numpy()[clear])


def test_alpha_0_is_zero_shot_and_alpha_1_the_probe(finished: Run) -> None:
    for scenario, level in (("label-noise", 0.4), ("ood", 1)):
        at = {"scenario": scenario, "level": level}
        first, last = (kept(finished, f"CLIP wise {alpha}", **at) for alpha in (0, 1))
        for ours, theirs in ((first, "CLIP zero-shot"), (last, "CLIP + l2norm")):
            wanted = kept(finished, theirs, **at)
            assert ours.keys() == wanted.keys()
            for column, values in ours.items():
                # products of other shapes are rounded otherwise
                np.testing.assert_allclose(values, wanted[column], rtol=1e-4, atol=1e-5, err_msg=column)
        assert not np.allclose(first["log_loss"], last["log_loss"], rtol=1e-2)


def test_an_average_of_weights_is_that_average_of_logits() -> None:
    torch.manual_seed(0)
    text, x = torch.randn(3, 5), torch.randn(7, 5)
    probes = LinearProbes(torch.randn(2, 3, 5), torch.randn(2, 3), [Choice(l2=1.0), Choice(l2=2.0)])
    expected = 0.75 * (x @ text.T)[:, None] + 0.25 * probes.logits(x, [0, 1])
    torch.testing.assert_close(averaged(text, probes, 0.25).logits(x, [0, 1]), expected)
    assert averaged(text, probes, 0.25).choices[1].l2 == 2.0
    unseen = LinearProbes(probes.weights_pcm, torch.tensor([[0, 0, -torch.inf]] * 2), probes.choices)
    torch.testing.assert_close(averaged(text, unseen, 0).logits(x, [0])[:, 0], x @ text.T)
    assert bool((averaged(text, unseen, 0.1).logits(x, [0, 1])[..., 2] == -torch.inf).all())


def test_nothing_is_fitted_so_no_label_noise_and_no_draw_reaches_it(finished: Run) -> None:
    rows = [row for row in finished.rows if row.arm == "CLIP zero-shot"]
    # one noise rate, one number of shots in two repeats, source and target: for all seeds at once
    assert len(rows) == 1 + 2 + 2
    on_clean_images = {row.accuracy for row in rows if not (row.scenario == "ood" and row.level)}
    assert len(on_clean_images) == 1
    assert {(row.draw, row.adapter_seed, row.label_signal, row.realised_rate) for row in rows} == {(None,) * 4}
    assert {row.probe_kind for row in rows} == {"zero-shot"}
    noisy = [row for row in finished.rows if row.arm == "CLIP wise 1" and row.level == 0.4]
    assert [row.draw for row in noisy] == [0, 1]
    assert not [row for row in finished.rows if row.status != "ok"]
    report = (finished.folder / "report.md").read_text()
    assert "zero-shot for CLIP zero-shot" in report
    assert "Arms of unlike probes are not judged" in report


def test_a_key_knows_classes_templates_and_alpha_and_not_the_number_of_seeds(spec: BackboneSpec) -> None:
    def keys(probe: object, **changes: object) -> set[str]:
        arms = [{"name": "a", "backbone": "CLIP", "method": "l2norm", "probe": probe}]
        fields = {**RECIPE, "backbones": {"CLIP": spec.model_dump()}, "arms": arms, "zero_shot": False, **changes}
        return {k for group in make_plan(load_recipe(fields)).groups for k in group.keys}

    plain = keys("zero-shot")
    assert plain == keys({"kind": "zero-shot", "templates": list(TEMPLATES)}) == keys("zero-shot", seeds=5)
    assert not plain & keys({"kind": "zero-shot", "templates": TWO})
    assert not keys("wise") & keys({"kind": "wise", "alpha": 0.25})
    assert not keys("wise") & keys({"kind": "wise", "probe": "ridge"})


def test_templates_come_from_a_file_and_are_kept_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("- a sketch of a {}.\n- '{}'\n")
    assert ZeroShot(templates=str(tmp_path / "t.yaml")).templates == ("a sketch of a {}.", "{}")
    assert ZeroShot(templates="a {}").templates == ("a {}",)
    assert prompts("ice_cream", ("a {}.", "{}")) == ["a ice cream.", "ice cream"]


CLIP = {"models": [{"model": f"open_clip:{ARCHITECTURE}", "weights": "random"}], "scenarios": ["clean"]}


def test_zero_shot_is_added_beside_each_model_that_has_a_text_tower(caplog: pytest.LogCaptureFixture) -> None:
    name = f"open_clip:{ARCHITECTURE}"
    recipe = load_recipe({**CLIP, "models": [*CLIP["models"], "resnet18"], "methods": ["relu"], "zero_shot": True})
    made = recipe.resolved()
    arms = {arm.name: arm for arm in made.arms}
    assert list(arms) == [
        name, f"{name} + relu", "resnet18", "resnet18 + relu", f"{name} zero-shot", f"{name} wise 0.5",
    ]  # fmt: skip
    assert arms[f"{name} zero-shot"].learner == "zero-shot"
    assert arms[f"{name} wise 0.5"].baseline == name
    assert "resnet18 has no text tower" in caplog.text
    assert made.resolved() == made == Recipe.model_validate(made.model_dump(mode="json"))
    probed = changed(made, probe=load_recipe({**CLIP, "probe": "ridge"}).probe)
    kinds = {arm.name: arm.probe for arm in probed.arms if arm.probe is not None}
    assert kinds == {
        f"{name} zero-shot": ZeroShot(),
        f"{name} wise 0.5": WiSE.model_validate({"alpha": 0.5, "probe": "ridge"}),
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"models": ["resnet18"]},
            "resnet18 has no text tower, so it cannot classify zero-shot: name a CLIP-like",
        ),
        ({"models": [{**CLIP["models"][0], "layer": "0"}]}, "not in the space of the text .*: leave out --layer"),
        ({"probe": "knn"}, "WiSE averages weights with a linear probe, which knn is not"),
        (
            {"probe": "zero-shot"},
            "zero-shot reads class names and is no probe of every arm: write zero_shot: true",
        ),
        ({"zero_shot": {"templates": []}}, "at least 1 item"),
        ({"zero_shot": {"templates": ["a photo"]}}, "'a photo' needs one {} where the class name goes"),
        ({"zero_shot": {"templates": "nowhere.yaml"}}, r"nowhere.yaml cannot be read \(FileNotFoundError\)"),
        ({"zero_shot": {"alphas": [2]}}, "less than or equal to 1"),
        ({"zero_shot": {"alpha": 0.5}}, "did you mean 'alphas'"),
    ],
)
def test_what_cannot_be_is_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load_recipe({"zero_shot": True, **CLIP, **fields}).resolved()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"backbone": "C", "method": "sae", "probe": "zero-shot"}, "compares class names with the codes of sae"),
        ({"backbone": "C", "probe": "wise"}, "codes of identity: give it method l2norm"),
        ({"backbone": "R", "method": "l2norm", "probe": "wise"}, "resnet18 has no text tower"),
        ({"backbone": "C", "method": "l2norm", "probe": {"kind": "wise", "probe": "knn"}}, "knn is not"),
    ],
)
def test_an_arm_whose_codes_are_not_in_the_space_of_text_is_refused(arm: dict[str, Any], words: str) -> None:
    backbones = {"C": CLIP["models"][0], "R": {"model": "resnet18"}}
    fields = {"backbones": backbones, "arms": [{"name": "a", **arm}], "scenarios": ["clean"]}
    with pytest.raises(UsageError, match=words):
        load_recipe(fields).resolved()
