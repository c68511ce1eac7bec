"""Published corruption files: both layouts, their rows beside the clean ones, and what is said of faults."""

import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from monoeval.__main__ import main
from monoeval.data.images import DataSpec, ImageSet
from monoeval.data.load import load_data
from monoeval.data.official import Official, official_images
from monoeval.errors import MonoevalError, UsageError
from monoeval.scenarios.corruption import Corruption
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe import Recipe

N = 12
LABELS = np.arange(N) % 3


def png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Parquet with 12 test rows, whose pixels are their number."""
    folder = tmp_path / "clean"
    folder.mkdir()
    for split in ("train", "test"):
        images = [{"bytes": png(np.full((8, 8, 3), row, np.uint8)), "path": None} for row in range(N)]
        pq.write_table(pa.table({"image": images, "label": LABELS}), folder / f"{split}.parquet")
    return folder


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Arrays whose pixels are 20 times the severity plus the row."""
    folder = tmp_path / "CIFAR-C"
    folder.mkdir()
    value = (20 * np.arange(1, 6)[:, None] + np.arange(N)).reshape(-1).astype(np.uint8)
    for kind in ("fog", "snow"):
        np.save(folder / f"{kind}.npy", np.broadcast_to(value[:, None, None, None], (5 * N, 8, 8, 3)))
    np.save(folder / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An image folder, and ImageNet-C files of its test images."""
    clean, corrupted = tmp_path / "images", tmp_path / "ImageNet-C"
    for row, label in enumerate(LABELS):
        places = [
            f"train/n{label}/ILSVRC2012_val_{row + 1:08d}.png",
            f"val/n{label}/ILSVRC2012_val_{row + 1:08d}.png",
        ]
        for path, value in (
            *((clean / place, row) for place in places),
            *(
                (corrupted / "fog" / str(s) / f"n{label}" / f"ILSVRC2012_val_{row + 1:08d}.JPEG", 20 * s)
                for s in (1, 3)
            ),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return clean, corrupted


def test_arrays_stand_in_for_rows_of_a_table(table: Path, cifar: Path) -> None:
    clean = load_data(DataSpec(name=str(table))).test
    for severity in (1, 3, 5):
        made = official_images(clean, Official(folder=str(cifar), kind="fog", severity=severity))
        assert [int(made.read(row)[0, 0, 0]) for row in (0, 7, 11)] == [20 * severity + row for row in (0, 7, 11)]
        np.testing.assert_array_equal(made.ids, clean.ids)
        np.testing.assert_array_equal(made.labels, clean.labels)
        assert not made.cropped
        assert pickle.loads(pickle.dumps(made.read))(2).tolist() == made.read(2).tolist()


def test_a_limited_set_reads_its_own_rows(table: Path, cifar: Path) -> None:
    clean = load_data(DataSpec(name=str(table), limit=5)).test
    made = official_images(clean, Official(folder=str(cifar), kind="fog", severity=2))
    assert [int(made.read(i)[0, 0, 0]) for i in range(5)] == [40 + int(name[-7:]) for name in clean.ids]


def test_files_stand_in_for_files_of_the_same_name_or_number(folders: tuple[Path, Path], table: Path) -> None:
    images, corrupted = folders
    for clean in (load_data(DataSpec(name=str(images))).test, load_data(DataSpec(name=str(table))).test):
        made = official_images(clean, Official(folder=str(corrupted), kind="fog", severity=3))
        np.testing.assert_array_equal(made.ids, clean.ids)
        assert made.cropped  # resized and cropped by those who published them, and not to be a second time
        assert made.read(4).mean() == pytest.approx(60, abs=2)
        for row, file in enumerate(made.read.args[1]):  # type: ignore[attr-defined]
            assert int(file[-13:-5]) == clean.read(row)[0, 0, 0] + 1


def test_fingerprints_know_the_files_and_the_rows(table: Path, cifar: Path) -> None:
    def made(kind: str, severity: int, limit: int | None = None) -> str:
        clean = load_data(DataSpec(name=str(table), limit=limit)).test
        return official_images(clean, Official(folder=str(cifar), kind=kind, severity=severity)).fingerprint

    np.save(cifar / "snow.npy", np.load(cifar / "fog.npy") + 1)
    assert len({made("fog", 1), made("fog", 2), made("snow", 1), made("fog", 1, 5)}) == 4
    assert made("fog", 1) == made("fog", 1)


def amiss(clean: ImageSet, folder: Path, kind: str = "fog", severity: int = 1) -> str:
    with pytest.raises(MonoevalError) as caught:
        official_images(clean, Official(folder=str(folder), kind=kind, severity=severity))
    return str(caught.value)


def test_rows_that_cannot_be_matched_are_refused(table: Path, cifar: Path, folders: tuple[Path, Path]) -> None:
    images, corrupted = folders
    tabled, filed = (load_data(DataSpec(name=str(path))).test for path in (table, images))
    assert "rows are not numbered" in amiss(filed, cifar)
    np.save(cifar / "labels.npy", np.tile(LABELS[::-1], 5))
    assert "labels.npy differs from the labels of 8 of 12 rows" in amiss(tabled, cifar)
    next((corrupted / "fog/1/n1").glob("*")).unlink()
    assert "1 of 12 are not there" in amiss(filed, corrupted)
    moved = corrupted / "fog/3/n0/ILSVRC2012_val_00000001.JPEG"
    moved.rename(corrupted / "fog/3/n1" / moved.name)
    assert "unlike labels" in amiss(tabled, corrupted, severity=3)


def test_arrays_that_are_no_images_are_refused(table: Path, cifar: Path) -> None:
    clean = load_data(DataSpec(name=str(table))).test
    np.save(cifar / "snow.npy", np.zeros((7, 8, 8, 3), np.uint8))
    assert "not uint8 images in five severities" in amiss(clean, cifar, "snow")
    (cifar / "frost.npy").write_bytes(b"nothing")
    assert "cannot be read as an array" in amiss(clean, cifar, "frost")


def test_the_protocol_says_official_and_level_zero_is_the_clean_set(table: Path, cifar: Path) -> None:
    scenario = Corruption(kinds=("fog", "snow"), severities=(2, 5), official=str(cifar))
    recipe = Recipe.model_validate(
        {"data": str(table), "models": ["test_resnet"], "seeds": 1, "scenarios": [scenario, "clean"]}
    )
    group = make_plan(recipe).groups[0]
    protocols = [trial.protocol for trial in group.trials]
    assert "corruption/cifar-c.official/fog@2" in protocols
    assert "corruption/cifar-c.official/snow@0" in protocols
    assert len(set(group.keys)) == len(group.trials)
    made = make_plan(recipe.model_copy(update={"scenarios": (Corruption(kinds=("fog",), severities=(2,)),)}))
    assert not set(made.groups[0].keys) & set(group.keys)  # not even of the clean level: it says another protocol
    moved = cifar.rename(cifar.parent / "elsewhere")
    again = Corruption(kinds=("fog", "snow"), severities=(2, 5), official=str(moved))
    assert (
        make_plan(recipe.model_copy(update={"scenarios": (again, recipe.scenarios[1])})).groups[0].keys
        == group.keys
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kinds": ["fog", "contrast"]}, "lacks contrast.npy: unpack them there"),
        ({"official": "nowhere"}, "There is no folder nowhere"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(
    table: Path,
    cifar: Path,
    change: dict[str, object],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenario = {"name": "corruption", "official": str(cifar), "kinds": ["fog"], **change}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"data": str(table), "models": ["test_resnet"], "scenarios": [scenario]}))
    monkeypatch.setattr("sys.argv", ["monoeval", "suite", "-r", str(recipe), "--out", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_missing_severities_are_named(folders: tuple[Path, Path]) -> None:
    scenario = Corruption(kinds=("fog",), official=str(folders[1]))
    with pytest.raises(UsageError, match="lacks fog/2, fog/4, fog/5:"):
        list(scenario.trials(DataSpec(name=str(folders[0])), 0))
