"""Targets in the folders they are published in, made tiny; and one class that several of ImageNet's are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monoeval.cli.main import app
from monoeval.data.cifar101 import LABELS, PIXELS
from monoeval.data.hierarchies import CIFAR10_CLASSES
from monoeval.data.imagenet import _words, in_words, same_classes
from monoeval.data.images import Data, DataSpec
from monoeval.data.load import load_data
from monoeval.data.objectnet import WORDNET
from monoeval.errors import MonoevalError, UsageError
from monoeval.scenarios.ood import OutOfDomain
from monoeval.scenarios.ood_detection import OODDetection
from monoeval.scenarios.trial import Trial
from monoeval.suite import plan, trial_rows
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.score import predicted

CHAIRS = ("n02791124", "n03376595", "n04099969")  # barber chair, folding chair, rocking chair
BANANA, ORANGE = "n07753592", "n07747607"


def pictures(root: Path, *classes: str, n: int = 4, border: int = 0, start: int = 0) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for row in range(n):
            pixels = np.full((12, 10, 3), (255, 0, 0), dtype=np.uint8)
            pixels[border : 12 - border, border : 10 - border] = start + row
            Image.fromarray(pixels).save(root / name / f"{name}{row}.png")
    return root


def objectnet(root: Path, *classes: str) -> Path:
    """An unpacked objectnet-1.0, with a red border of one pixel."""
    pictures(root / "images", *classes, border=1)
    (root / "mappings").mkdir()
    (root / "mappings/folder_to_objectnet_label.json").write_text(json.dumps({"chair": "Chair"}))
    return root


def loaded(path: Path) -> Data:
    return load_data(DataSpec(name=str(path)))


def test_the_classes_of_objectnet_are_those_that_imagenet_has() -> None:
    """Spot checks of the published map against the words that ImageNet has for its ids."""
    ids = [identity for same in WORDNET.values() for identity in same]
    assert (len(WORDNET), len(ids), len(set(ids))) == (113, 125, 125)
    assert WORDNET["chair"] == CHAIRS
    for folder, words in {
        "chair": ("barber chair", "folding chair", "rocking chair, rocker"),
        "tv": ("television, television system",),
        "full_sized_towel": ("bath towel",),
        "tie": ("bow tie, bow-tie, bowtie", "Windsor tie"),
        "drying_rack_for_dishes": ("plate rack",),
        "pop_can": ("pop bottle, soda bottle",),
    }.items():
        assert tuple(_words()[identity] for identity in WORDNET[folder]) == words


@pytest.mark.parametrize("inside", [False, True])
def test_objectnet_is_read_without_its_border_and_without_other_classes(tmp_path: Path, inside: bool) -> None:
    root = objectnet(tmp_path / "objectnet-1.0", "air_freshener", "banana", "chair")
    whole = loaded(root / "images" if inside else root).whole
    assert whole is not None
    assert whole.class_names == (BANANA, "+".join(CHAIRS))
    assert whole.labels.tolist() == [0] * 4 + [1] * 4
    image = whole.read(3)
    assert image.shape == (8, 6, 3)
    assert (image == 3).all()  # nothing red
    assert whole.ids[3] == "banana/banana3.png"
    with pytest.raises(UsageError, match="none of the class folders of ObjectNet"):
        loaded(objectnet(tmp_path / "other", "air_freshener", "belt"))


def test_folders_that_are_called_alike_are_no_objectnet(tmp_path: Path) -> None:
    assert loaded(pictures(tmp_path / "fruit", "banana", "orange")).test.class_names == ("banana", "orange")


def test_classes_that_cover_several() -> None:
    many = "+".join(CHAIRS)
    assert same_classes([BANANA, *CHAIRS], [many, BANANA]) == {many: CHAIRS, BANANA: (BANANA,)}
    assert same_classes([BANANA, many], [CHAIRS[1]]) == {CHAIRS[1]: (many,)}
    assert same_classes([CHAIRS[2], BANANA], [many]) == {many: (CHAIRS[2],)}
    assert in_words([f"{BANANA}+{ORANGE}"]) == ("banana or orange",)


def trials(source: Path, target: Path) -> tuple[Trial, Trial]:
    first, second = OutOfDomain.model_validate({"target": str(target)}).trials(DataSpec(name=str(source)), 0)
    return first, second


def test_either_of_imagenets_classes_is_right_for_one_of_objectnet(tmp_path: Path) -> None:
    target = objectnet(tmp_path / "objectnet-1.0", "air_freshener", "banana", "chair")
    source = pictures(tmp_path / "imagenet", *CHAIRS, BANANA, ORANGE, start=50)
    clean, shifted = trials(source, target)
    assert trial_rows.load(clean.data).train.class_names == (*CHAIRS, ORANGE, BANANA)
    for trial in (clean, shifted):
        assert trial_rows.counts_as(trial).tolist() == [0, 0, 0, -1, 4]  # ObjectNet has no orange here
    assert trial_rows.tested_rows(shifted)[1].tolist() == [4] * 4 + [0] * 4
    assert trial_rows.tested_rows(clean)[1].tolist() == [
        0,
        0,
        0,
        4,
    ]  # a row of each class is held out, orange is not scored
    logits = np.array([[0.0, 1, 5, 9, 4], [0, 1, 3, 9, 4], [np.nan, 1, 3, 9, 4]])
    scores, broken = predicted(logits, np.array([0, 0, 0]), trial_rows.counts_as(shifted))
    assert broken == 1
    assert scores.prediction[:2].tolist() == [0, 4]
    odds = [np.exp(4) / np.exp([0, 1, 5]).sum(), np.exp(4) / np.exp([0, 1, 3]).sum()]
    assert scores.log_loss[:2] == pytest.approx(np.log1p(odds))  # of the three chairs together
    assert scores.energy[0] == pytest.approx(-np.log(np.exp([0, 1, 5, 4]).sum()))


def test_the_single_largest_logit_decides_what_is_predicted() -> None:
    """As published accuracies have it, though two chairs may be likelier together than a banana."""
    logits = np.array([[1.9, 1.9, -9, 0, 2.0]])
    scores, _ = predicted(logits.copy(), np.array([4]), np.array([0, 0, 0, -1, 4]))
    assert scores.prediction.tolist() == [4]
    assert scores.log_loss[0] == pytest.approx(np.log1p(np.exp([1.9, 1.9, -9]).sum() / np.exp(2)))
    unseen, _ = predicted(
        logits, np.array([0]), np.array([-1, 0, 0, -1, -1])
    )  # the first of the chairs was not fitted
    assert unseen.prediction.tolist() == [0]
    assert unseen.log_loss[0] == pytest.approx(0)


def test_rows_of_objectnet_that_are_to_be_detected_have_the_scores_of_single_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the rows of the data have, or both sides would differ by how their classes are counted."""
    target = objectnet(tmp_path / "objectnet-1.0", "banana", "chair")
    source = pictures(tmp_path / "imagenet", *CHAIRS, BANANA, start=50)
    both = list(OODDetection.model_validate({"target": str(target)}).trials(DataSpec(name=str(source)), 0))
    assert [trial_rows.counts_as(trial).tolist() for trial in both] == [[0, 1, 2, 3]] * 2
    trial_rows.check(both[1])
    assert f"imagenet ({'+'.join(CHAIRS)}, {BANANA}): what is detected is a change" in caplog.text


def test_merging_counts_in_the_key_and_only_where_it_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = objectnet(tmp_path / "objectnet-1.0", "banana", "chair")
    source = pictures(tmp_path / "imagenet", *CHAIRS, BANANA, start=50)
    fields: dict[str, Any] = {
        "data": str(source),
        "models": ["test_vit"],
        "scenarios": ["clean", {"name": "ood", "target": str(target)}],
    }
    with_merging = make_plan(load_recipe(fields)).groups[0].keys
    monkeypatch.setattr(plan, "counts_as", lambda _: np.arange(4))
    assert [a == b for a, b in zip(make_plan(load_recipe(fields)).groups[0].keys, with_merging, strict=True)] == [
        True, False, False
    ]  # fmt: skip


def test_stylized_imagenet_is_matched_by_wordnet_id_however_it_is_named(tmp_path: Path) -> None:
    source = pictures(tmp_path / "imagenet", BANANA, ORANGE, CHAIRS[0])
    pictures(tmp_path / "sin/val", BANANA, ORANGE, n=3)
    for named in (tmp_path / "sin", tmp_path / "sin/val"):
        shifted = trials(source, named)[1]
        rows, labels = trial_rows.tested_rows(shifted)
        assert labels.tolist() == [1, 1, 1, 2, 2, 2]
        assert len(rows) == 6
        assert trial_rows.load(shifted.data).train.class_names[1:] == (ORANGE, BANANA)


def cifar101(root: Path, n: int = 20) -> Path:
    root.mkdir()
    np.save(root / PIXELS, np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8))
    np.save(root / LABELS, np.arange(n, dtype=np.int32) % 10)
    return root


def test_cifar101_is_its_two_files(tmp_path: Path) -> None:
    root = cifar101(tmp_path / "CIFAR-10.1")
    np.save(root / "cifar10.1_v4_labels.npy", np.zeros(3))  # the other version lies beside it
    whole = loaded(root).whole
    assert whole is not None
    assert whole.class_names == tuple(sorted(CIFAR10_CLASSES))
    assert whole.labels.tolist() == [*range(10)] * 2
    assert whole.read(13).shape == (32, 32, 3)
    assert (whole.read(13) == 13).all()
    source = pictures(tmp_path / "cifar10", *CIFAR10_CLASSES)
    assert len(trial_rows.tested_rows(trials(source, root)[1])[0]) == 20


def test_damaged_arrays_are_one_sentence(tmp_path: Path) -> None:
    root = cifar101(tmp_path / "set")
    np.save(root / LABELS, np.arange(20))
    with pytest.raises(
        MonoevalError, match=r"uint8 \[20, 32, 32, 3\] and labels int64 \[20\], not the images and"
    ):
        loaded(root)
    (root / LABELS).unlink()
    with pytest.raises(MonoevalError, match=r"labels.npy cannot be read as an array .*: download it again"):
        loaded(root)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("objectnet", "unpack objectnet-1.0.zip from objectnet.dev and name the folder"),
        ("stylized-imagenet", "--target ./stylized-imagenet/val"),
        ("cifar10.1", f"put {PIXELS} and {LABELS}"),
        ("cifar10-c", "{name: corruption, official: ./cifar10-c}, with cifar10 as data"),
        ("imagenet-c", "with imagenet-1k as data"),
        ("objectnett", "did you mean 'objectnet'?"),
    ],
)
def test_names_that_the_hub_does_not_have_say_what_to_put_where(name: str, says: str) -> None:
    error = CliRunner().invoke(app, ["suite", "--scenario", "ood", "--target", name, "--dry-run"]).exception
    assert isinstance(error, UsageError)
    assert says in str(error)


def test_published_corruptions_are_no_target(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(5))
    command = ["suite", "--scenario", "ood", "--target", str(tmp_path), "--dry-run"]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UsageError)
    assert f"{{name: corruption, official: {tmp_path}}}, with the clean set as data" in str(error)
