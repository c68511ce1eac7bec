"""`monoeval inspect` as a person types it, on digits and a tiny network with random weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from monoeval.adapters.base import Adapter, Codes, SparseRows
from monoeval.backbones.features import FeatureSet
from monoeval.cli.main import app
from monoeval.errors import MonoevalError, UsageError
from monoeval.suite.inspection import columns

NETWORK = ("--model", "test_resnet", "--weights", "random", "--image-size", "32")
SMALL = (*NETWORK, "--limit", "150", "--count", "2", "--top", "3")
QUICK = ("--params", "k=4,width=48", "--params", "steps=20")

PIXELS = """
from torch import nn

def pixels():
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
"""


def inspect(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments], terminal_width=100)


def wrong(*arguments: str) -> MonoevalError:
    """The error that `main` turns into a sentence and an exit code."""
    error = inspect(*arguments).exception
    assert isinstance(error, MonoevalError), repr(error)
    assert "\n" not in str(error)
    return error


def said(*arguments: str) -> dict:
    done = inspect(*arguments, "--json")
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


def test_a_method_is_measured_and_drawn_and_its_folder_gives_the_same(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = tmp_path / "pages" / "sae.html"
    done = inspect("sae", *SMALL, *QUICK, "--out", str(page))
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert done.stdout.rstrip().endswith(f"Gallery: {page}")
    assert "needs --reference" in done.stdout
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png") + html.count("data:image/jpeg") >= 3
    method = said("sae", *SMALL, *QUICK, "--out", str(page))
    assert method["measures"]["L0"]["value"] == pytest.approx(4, abs=0.1)
    assert 0 < method["measures"]["explained variance"]["value"] < 1
    folder = next((cache / "adapters").glob("*/adapter.json")).parent
    saved = said(str(folder), *SMALL, "--out", str(page))
    assert saved["saved in"] == folder.name
    alone = saved["measures"].pop("stability over seeds"), method["measures"].pop("stability over seeds")
    assert alone[0] == {"value": None, "chance": None}
    assert alone[1]["value"] > alone[1]["chance"] > 0
    assert saved["measures"] == method["measures"]
    assert [saved[group] for group in ("most", "least", "random")] == [
        method[group] for group in ("most", "least", "random")
    ]
    assert "other images" not in caplog.text
    said(str(folder), *NETWORK, "--limit", "100", "--out", str(page))
    assert "other images of this backbone" in caplog.text

    error = wrong(str(folder), "--model", "test_vit", "--weights", "random", "--limit", "150")
    assert "64 features of test_vit" in str(error)
    assert "params" in str(wrong(str(folder), *SMALL, *QUICK))
    assert "--seeds speaks of a method" in str(wrong(str(folder), *SMALL, "--seeds", "2"))
    (folder / "adapter.safetensors").write_bytes(b"cut short")
    assert "not a whole adapter folder" in str(wrong(str(folder), *SMALL))


def test_a_reference_gives_the_monosemanticity_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the mean cosine of all pairs of images, here computed one by one."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(PIXELS)
    found = said("relu", *NETWORK, "--limit", "60", "--reference", "model.py:pixels", "--count", "1")
    score = found["measures"]["monosemanticity score"]
    assert found["ranked by"] == "monosemanticity score"
    assert re.fullmatch(r"runs/inspect-relu-test_resnet-digits-[0-9a-f]{6}\.html", found["page"])
    assert "model.py:pixels" in Path(found["page"]).read_text(encoding="utf-8")
    assert said("relu", *NETWORK, "--limit", "60", "--count", "1")["page"] != found["page"]

    from monoeval.backbones.extract import extract
    from monoeval.backbones.load import load_backbone
    from monoeval.backbones.spec import BackboneSpec
    from monoeval.data.images import DataSpec
    from monoeval.data.load import load_data

    test = load_data(DataSpec(name="digits", limit=60)).test

    def features(name: str, **options: object) -> np.ndarray:
        backbone = load_backbone(BackboneSpec.model_validate({"model": name, **options}))
        return extract(backbone, name, test, [None])[0].load().double().numpy()

    z = features("test_resnet", weights="random", image_size=32).clip(0)
    embeddings = features("model.py:pixels")
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(len(z), 1)
    cosines = (embeddings @ embeddings.T)[first, second]
    scores = []
    for column in z.T[(z > 0).sum(0) >= 2]:
        scaled = (column - column.min()) / (column.max() - column.min())
        weights = scaled[first] * scaled[second]
        if weights.sum() > 1e-8:
            scores.append((weights * cosines).sum() / weights.sum())
    assert score["value"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert score["chance"] == pytest.approx(cosines.mean(), rel=1e-6)


def test_an_adapter_that_is_not_trained_is_marked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    page = tmp_path / "page.html"
    idle = ("sae", *SMALL, "--params", "k=4,width=48,steps=0", "--out", str(page))
    found = said(*idle)
    own, before = (found["measures"][f"explained variance{of}"]["value"] for of in ("", ", untrained"))
    assert own == pytest.approx(before)
    assert "held-out rows, its untrained self" in found["not trained"]
    assert "is not trained: it explains" in caplog.text
    assert "not trained" in page.read_text(encoding="utf-8")
    assert "not trained it explains" in inspect(*idle).stdout
    trained = said("sae", *SMALL, *QUICK, "--out", str(page))
    assert "not trained" not in trained
    assert 0 < trained["measures"]["explained variance, PCA"]["value"] <= 1
    assert "held-out features" in inspect("pca", *SMALL, "--out", str(page)).stdout
    assert "no decoder" in inspect("relu", *SMALL, "--out", str(page)).stdout


def test_margins_stability_and_drift_are_those_of_the_suite(tmp_path: Path) -> None:
    """In a suite's report of the same study; a probe on permuted labels knows nothing."""
    from monoeval.suite.ledger import read_rows
    from monoeval.suite.run import run

    page = ("--out", str(tmp_path / "page.html"))
    asked = (*NETWORK, "--limit", "300", "--count", "1", *page)
    found = said("sae", *asked, *QUICK, "--seeds", "3", "--corruption", "contrast:4")["measures"]
    done = run(
        {
            "name": "same", "data": {"name": "digits", "limit": 300}, "seeds": 3,
            "models": [{"model": "test_resnet", "weights": "random", "image_size": 32}],
            "methods": [{"method": "sae", "params": {"k": 4, "width": 48, "steps": 20}}],
            "scenarios": [{"name": "clean"}, {"name": "corruption", "kinds": ["contrast"], "severities": [4]}],
        },
        out=tmp_path,
    )  # fmt: skip
    rows = [r for r in read_rows(done.folder) if r.method == "sae"]
    drift = next(r.drift for r in rows if r.adapter_seed == 0 and "contrast@4" in r.protocol)
    assert found["cosine under change"]["value"] == pytest.approx(drift["cosine"])
    assert found["Jaccard under change"]["value"] == pytest.approx(drift["jaccard"])
    shifts = {"L0 shift under change": "l0", "explained variance shift": "explained"}
    for title, name in shifts.items():
        assert found[title]["value"] == pytest.approx(drift[f"{name}_corrupted"] - drift[f"{name}_clean"])
    clean = {r.adapter_seed: r.adapter for r in rows if r.scenario == "clean"}
    assert found["margin"]["value"] == pytest.approx(clean[0]["margin"], rel=1e-3)
    assert found["margin, of the lowest 5 %"]["value"] == pytest.approx(clean[0]["margin_low"], rel=1e-3)
    assert abs(found["margin"]["chance"]) < 0.3 * found["margin"]["value"]
    stability = [clean[seed]["stability"] for seed in (1, 2)]
    assert found["stability over seeds"]["value"] == pytest.approx(np.mean(stability))
    none = said("sae", *asked, *QUICK, "--seeds", "1", "--corruption", "none")["measures"]
    assert none["stability over seeds"]["value"] is None
    assert none["cosine under change"]["value"] is None
    assert "no decoder" in inspect("relu", *asked).stdout
    assert "the method draws nothing" in inspect("pca", *asked).stdout


def test_seeds_are_not_fitted_where_there_is_no_dictionary_to_compare(cache: Path, tmp_path: Path) -> None:
    quick = ("--params", "width=16,steps=5,n_views=2", "--out", str(tmp_path / "page.html"))
    asked = (*NETWORK, "--limit", "60", "--count", "1", *quick, "--seeds", "3", "--corruption", "fog")
    found = inspect("ncl-head", *asked)
    assert re.search(r"stability over seeds +n/a +the method has no decoder", found.stdout)
    assert re.search(r"explained variance shift +n/a +the method has no decoder", found.stdout)
    assert "under fog of severity 3" in found.stdout
    assert len(list((cache / "adapters").glob("*/adapter.json"))) == 1


class Fixed(Adapter):
    """Gives the features as codes, dense or as the three largest of each row."""

    method = "fixed"

    def __init__(self, width: int, sparse: bool) -> None:
        self.width, self.sparse = width, sparse

    def fit(self, *_: object, **__: object) -> "Fixed":
        return self

    def encode(self, features_nd: torch.Tensor) -> torch.Tensor | SparseRows:
        if not self.sparse:
            return features_nd
        indices = features_nd.topk(3, dim=1).indices
        return SparseRows(features_nd.gather(1, indices), indices, self.width)

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, _: dict[str, torch.Tensor]) -> "Fixed":
        return self


@pytest.mark.parametrize("sparse", [False, True])
def test_columns_are_those_of_the_codes_and_zero_where_a_latent_is_idle(sparse: bool, tmp_path: Path) -> None:
    rows = np.random.default_rng(3).normal(size=(40, 9)).astype(np.float32)
    rows[:, 4] = 1e-7 * np.abs(rows[:, 4])  # below 1e-5 of every row's length
    np.save(tmp_path / "rows.npy", rows)
    codes = Codes(FeatureSet("rows", (tmp_path / "rows.npy",)), Fixed(9, sparse), torch.device("cpu"))
    wanted = np.array([7, 0, 4])
    expected = codes.dense().numpy()[:, wanted]
    expected[:, 2] = 0
    found = columns(codes, wanted)
    assert found.dtype == np.float32
    assert (found == expected).all()
    assert (found[:, 0] != 0).any()
    assert columns(codes, np.array([], dtype=int)).shape == (40, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("sea", *NETWORK), 2, "'sae'"),
        (("./nowhere", *NETWORK), 2, "no folder ./nowhere"),
        ((".", *NETWORK), 2, "not a whole adapter folder"),
        (("sae",), 2, "--model"),
        (("sae", "--model", "test_resnet"), 1, "--weights"),
        (("sae", *NETWORK, "--params", "k"), 2, "NAME=VALUE"),
        (("sae", *NETWORK, "--params", "q=3"), 2, "'q'"),
        (("sae", *NETWORK, "--params", "k=many"), 2, "k cannot be 'many'"),
        (("relu", *NETWORK, "--params", "k=3"), 2, "takes no parameters"),
        (("sae", *NETWORK, "--reference", "vit_b61"), 2, "vit_b16"),
        (("sae", *NETWORK, "--data", "digitz"), 2, "'digits'"),
        (("sae", *NETWORK, "--corruption", "frog"), 2, "'fog'"),
        (("sae", *NETWORK, "--corruption", "fog:6"), 2, "fog:3"),
        (("sae", *NETWORK, "--corruption", "fog:a"), 2, "severity of 1 to 5"),
        (("sae", *NETWORK, "--params", "k=10000"), 2, "choose a smaller k"),
        (("sae", *NETWORK, "--params", "width_factor=0.001"), 2, "not one latent"),
        (("sae", *NETWORK, "--out", "."), 2, "is a folder"),
        (("sae", *NETWORK, "--out", "script.py"), 2, "is not called so"),
        (("sae", *NETWORK, "--out", "taken/page.html"), 1, "--out"),
    ],
)
def test_what_is_wrong_is_one_sentence_before_anything_is_made(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file where a folder should be")
    error = wrong(*arguments)
    assert says in str(error)
    assert error.exit_code == code
    assert not (cache / "features").exists()


def test_the_evaluated_model_is_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(PIXELS)
    same = ("--model", "model.py:pixels", "--reference", "model.py:pixels")
    error = wrong("relu", *same)
    assert isinstance(error, UsageError)
    assert "another one" in str(error)
    at_other_sizes = "--model", "test_resnet", "--weights", "random", "--reference", "test_resnet", "--image-size"
    assert "--weights" in str(wrong("relu", *at_other_sizes, "40"))  # pretrained weights are another model
    for read in (("--image-size", "24"), ("--layer", "0"), ("--precision", "fp32")):
        assert "another one" in str(wrong("relu", *same, *read))


def test_an_adapter_of_another_backbone_is_refused_by_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have 48 features, which is all that could be told from the tensors."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(PIXELS)
    Path("others.py").write_text(PIXELS.replace("pixels", "others").replace("AvgPool", "MaxPool"))
    size = ("--limit", "60", "--count", "1", "--top", "1", "--image-size", "32", "--out", "page.html")
    said("standardize", "--model", "model.py:pixels", *size)
    folder = str(next((cache / "adapters").glob("*/adapter.json")).parent)
    error = wrong(folder, "--model", "others.py:others", *size)
    assert isinstance(error, UsageError)
    assert "was fitted on features of model.py:pixels and these are of others.py:others" in str(error)
    assert "other weights, layer or size of model.py:pixels" in str(
        wrong(folder, "--model", "model.py:pixels", *size[:-4], "--image-size", "8", *size[-2:])
    )
    said(folder, "--model", "model.py:pixels", "--limit", "40", *size[2:])
    (Path(folder) / "adapter.json").write_text(
        json.dumps(
            {k: v for k, v in json.loads((Path(folder) / "adapter.json").read_text()).items() if k != "spec"}
        )
    )
    assert "does not say which adapter it holds" in str(wrong(folder, "--model", "model.py:pixels", *size))


def test_data_without_rows_say_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is empty" in str(wrong("sae", *NETWORK, "--data", str(tmp_path / "empty")))


def test_a_typing_mistake_is_told_without_torch() -> None:
    forbid = "import sys; sys.modules['torch'] = None\nfrom monoeval.__main__ import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", forbid, "inspect", "sea", *NETWORK],
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'sae'" in done.stderr
