"""Folders, parquet, saved and hub data sets, made small here; and every way they can be wrong."""

import io
import json
import logging
import pickle
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from monoeval.data import hub, load
from monoeval.data.images import DataSpec
from monoeval.data.load import DATASETS, load_data, unlabelled
from monoeval.data.source import NoClassesError
from monoeval.errors import MonoevalError, UsageError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 10, start: int = 0) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for row in range(n):
            (root / name / f"{row:02d}.png").write_bytes(png(start + 100 * label + row))
    return root


def table(values: range, labels: list[object], kind: pa.DataType | None = None, **more: list[object]) -> pa.Table:
    cells = [{"bytes": png(value), "path": None} for value in values]
    return pa.table({"image": cells, "label": pa.array(labels, kind), **more})


def write(path: Path, rows: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)
    return path


def stream(path: Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=3)


def saved(root: Path, splits: dict[str, pa.Table]) -> Path:
    """What `save_to_disk` of a DatasetDict leaves."""
    for name, rows in splits.items():
        (root / name).mkdir(parents=True)
        stream(root / name / "data-00000-of-00001.arrow", rows)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (root / name / "state.json").write_text(json.dumps(state))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return root


def first_pixels(images) -> list[int]:  # type: ignore[no-untyped-def]
    return [int(images.read(row)[0, 0, 0]) for row in range(len(images))]


# Folders of images


def test_folder_with_splits(tmp_path: Path) -> None:
    image_folder(tmp_path / "pets/train", n=3)
    image_folder(tmp_path / "pets/val", n=2, start=50)
    (tmp_path / "pets/train/cat/notes.txt").write_text("not an image")
    (tmp_path / "pets/train/cat/.hidden.png").write_bytes(b"")
    data = load_data(DataSpec(name=str(tmp_path / "pets")))
    assert data.train.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert first_pixels(data.train) == [0, 1, 2, 100, 101, 102]
    assert first_pixels(data.test) == [50, 51, 150, 151]
    assert data.test.ids.tolist() == ["val/cat/00.png", "val/cat/01.png", "val/dog/00.png", "val/dog/01.png"]


def test_folder_without_splits_is_divided(tmp_path: Path) -> None:
    data = load_data(DataSpec(name=str(image_folder(tmp_path / "pets"))))
    assert np.bincount(data.train.labels).tolist() == [7, 7]
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    assert not set(data.train.ids) & set(data.test.ids)
    assert sorted(first_pixels(data.train) + first_pixels(data.test)) == [*range(10), *range(100, 110)]


def test_folders_as_domains(tmp_path: Path) -> None:
    image_folder(tmp_path / "pacs/photo", n=4)
    image_folder(tmp_path / "pacs/sketch", n=2, start=50)
    name = str(tmp_path / "pacs")
    across = load_data(DataSpec(name=name, train_split="photo", test_split="sketch"))
    assert len(across.train) == 8
    assert first_pixels(across.test) == [50, 51, 150, 151]
    within = load_data(DataSpec(name=name, train_split="photo"))
    assert (len(within.train), len(within.test)) == (6, 2)


def test_unlabelled_test_folder_gives_way_to_validation(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    image_folder(root / "train", n=3)
    image_folder(root / "val", n=2)
    (root / "test").mkdir()
    (root / "test/1.png").write_bytes(png(1))
    assert load_data(DataSpec(name=str(root))).test.ids[0].startswith("val/")


def test_the_fingerprint_is_of_contents_not_of_the_place(tmp_path: Path) -> None:
    here = load_data(DataSpec(name=str(image_folder(tmp_path / "a")))).train
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere/b")
    there = load_data(DataSpec(name=str(tmp_path / "elsewhere/b"))).train
    assert here.fingerprint == there.fingerprint
    (tmp_path / "a/cat/00.png").write_bytes(png(77))
    assert load_data(DataSpec(name=str(tmp_path / "a"))).train.fingerprint != here.fingerprint
    (tmp_path / "elsewhere/b/cat/00.png").rename(tmp_path / "elsewhere/b/dog/99.png")
    assert load_data(DataSpec(name=str(tmp_path / "elsewhere/b"))).train.fingerprint != here.fingerprint


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monoeval.data import fingerprint

    read: list[Path] = []
    real = fingerprint.file_key
    monkeypatch.setattr(fingerprint, "file_key", lambda path: read.append(path) or real(path))
    spec = DataSpec(name=str(image_folder(tmp_path / "pets")))
    before = load_data(spec).train.fingerprint
    assert len(read) == 20
    assert load_data(spec).train.fingerprint == before
    assert len(read) == 20
    (tmp_path / "pets/cat/03.png").write_bytes(png(200))
    load_data(spec)
    assert [path.name for path in read[20:]] == ["03.png"]


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "file/cache"))
    with caplog.at_level(logging.WARNING, "monoeval"):
        assert len(load_data(DataSpec(name=str(image_folder(tmp_path / "pets")))).train) == 14
        write(tmp_path / "t/train.parquet", table(range(10), [0, 1] * 5))
        assert len(first_pixels(load_data(DataSpec(name=str(tmp_path / "t"))).train)) == 6
    assert "MONOEVAL_CACHE" in caplog.text
    assert "unpacked anew" in caplog.text


def test_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    image_folder(tmp_path / "pets")
    assert len(load_data(DataSpec(name="~/pets")).train) == 14
    monkeypatch.chdir(tmp_path)
    assert len(load_data(DataSpec(name="pets")).train) == 14
    assert load_data(DataSpec(name="./pets")).train.name == "pets"


# Tables


def test_parquet_with_split_names(tmp_path: Path) -> None:
    write(tmp_path / "data/train-00000-of-00002.parquet", table(range(3), ["b", "a", "c"]))
    write(tmp_path / "data/train-00001-of-00002.parquet", table(range(3, 6), ["a", "a", "b"]))
    write(tmp_path / "data/test-00000-of-00001.parquet", table(range(6, 8), ["c", "a"]))
    data = load_data(DataSpec(name=str(tmp_path)))
    assert data.train.class_names == ("a", "b", "c")
    assert data.train.labels.tolist() == [1, 0, 2, 0, 0, 1]
    assert first_pixels(data.train) == list(range(6))
    assert first_pixels(data.test) == [6, 7]
    assert data.test.labels.tolist() == [2, 0]


def test_parquet_folders_as_splits_and_plain_bytes(tmp_path: Path) -> None:
    for split, values in (("train", range(4)), ("validation", range(4, 6))):
        rows = pa.table({"img": [png(v) for v in values], "digit": pa.array([v % 2 for v in values], pa.uint8())})
        write(tmp_path / split / "0000.parquet", rows)
    with pytest.raises(UsageError, match=r"clearly the label: name one with --label-column .*digit \(uint8\)"):
        load_data(DataSpec(name=str(tmp_path)))
    data = load_data(DataSpec(name=str(tmp_path), label_column="digit"))
    assert data.train.class_names == ("0", "1")
    assert first_pixels(data.test) == [4, 5]


def test_parquet_a_domain_a_file(tmp_path: Path) -> None:
    write(tmp_path / "photo.parquet", table(range(10), [0, 1] * 5))
    write(tmp_path / "sketch.parquet", table(range(50, 54), [0, 1] * 2))
    assert load_data(DataSpec(name=str(tmp_path))).domains == ("photo", "sketch")
    with pytest.raises(UsageError, match="did you mean 'photo'"):
        load_data(DataSpec(name=str(tmp_path), train_split="foto"))
    data = load_data(DataSpec(name=str(tmp_path), train_split="photo", test_split="sketch"))
    assert (len(data.train), first_pixels(data.test)) == (10, [50, 51, 52, 53])
    same = load_data(DataSpec(name=str(tmp_path), train_split="photo", test_split="photo"))
    assert not set(first_pixels(same.train)) & set(first_pixels(same.test))


def test_numbers_sort_by_value_and_labels_may_be_dictionaries(tmp_path: Path) -> None:
    write(tmp_path / "n/train.parquet", table(range(6), [10, 9, 2] * 2))
    assert load_data(DataSpec(name=str(tmp_path / "n"))).train.class_names == ("2", "9", "10")
    rows = table(range(8), ["x", "y"] * 4)
    rows = rows.set_column(1, "label", rows["label"].dictionary_encode())
    write(tmp_path / "d/train.parquet", rows)
    assert load_data(DataSpec(name=str(tmp_path / "d"))).train.class_names == ("x", "y")


def class_labels(**columns: list[str]) -> dict[bytes, bytes]:
    """What the `datasets` library notes in the files it writes."""
    noted = {name: {"names": names, "_type": "ClassLabel"} for name, names in columns.items()}
    return {b"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, **noted}}}).encode()}


def test_class_names_come_from_the_features(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = table(range(6), [2, 0, 2, 0, 2, 0])
    write(tmp_path / "train.parquet", rows.replace_schema_metadata(class_labels(label=["zebra", "yak", "ant"])))
    data = load_data(DataSpec(name=str(tmp_path)))
    assert data.train.class_names == ("zebra", "ant")
    assert "1 of 3 classes have no images and are left out (yak)" in caplog.text


def test_fine_labels_come_before_coarse_ones(tmp_path: Path) -> None:
    fine, coarse = [0, 1, 2, 0, 1, 2], [0, 0, 1, 0, 0, 1]
    rows = table(range(6), fine, coarse_label=coarse).rename_columns(["image", "fine_label", "coarse_label"])
    noted = class_labels(coarse_label=["A", "B"], fine_label=["a", "b", "c"])
    write(tmp_path / "train.parquet", rows.replace_schema_metadata(noted))
    assert load_data(DataSpec(name=str(tmp_path))).train.class_names == ("a", "b", "c")
    chosen = load_data(DataSpec(name=str(tmp_path), label_column="coarse_label"))
    assert chosen.train.class_names == ("A", "B")


def test_saved_folder_and_its_unlabelled_test_split(tmp_path: Path) -> None:
    rows = table(range(8), [0, 1] * 4).replace_schema_metadata(class_labels(label=["a", "b"]))
    hidden = table(range(3), [-1] * 3).replace_schema_metadata(class_labels(label=["a", "b"]))
    root = saved(tmp_path / "saved", {"train": rows, "test": hidden, "validation": rows.slice(2, 2)})
    data = load_data(DataSpec(name=str(root)))
    assert data.train.class_names == ("a", "b")
    assert first_pixels(data.train) == list(range(8))
    assert data.test.ids.tolist() == ["validation/0000000", "validation/0000001"]
    assert first_pixels(data.test) == [2, 3]


def test_a_real_saved_folder_reads_alike(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.open(io.BytesIO(png(v))) for v in range(6)]
    features = datasets.Features({"pic": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    made = datasets.Dataset.from_dict({"pic": pictures, "kind": [0, 1] * 3}, features=features)
    made.select([5, 4, 3, 2]).save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "t/train.parquet"))
    data = load_data(DataSpec(name=str(tmp_path / "saved")))
    assert data.train.class_names == ("a", "b")
    assert sorted(first_pixels(data.train) + first_pixels(data.test)) == [2, 3, 4, 5]
    assert load_data(DataSpec(name=str(tmp_path / "t"))).train.class_names == ("a", "b")


def test_readers_are_small_and_safe_in_threads(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", table(range(200), [0, 1] * 100))
    images = load_data(DataSpec(name=str(tmp_path))).train
    expected = [int(name.split("/")[1]) for name in images.ids]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda row: int(images.read(row)[0, 0, 0]), range(len(images))))
    assert read == expected
    whole = images.read.read  # type: ignore[attr-defined]
    sent = pickle.dumps(whole)
    assert len(sent) < 1000
    assert pickle.loads(sent)(3)[0, 0, 0] == 3


def test_a_damaged_picture_names_its_row(tmp_path: Path) -> None:
    rows = pa.table({"image": [png(0)[:40], None] * 10, "label": [0, 1] * 10})
    write(tmp_path / "train.parquet", rows)
    images = load_data(DataSpec(name=str(tmp_path))).train
    broken, missing = (int(np.flatnonzero(images.labels == label)[0]) for label in (0, 1))
    with pytest.raises(MonoevalError, match=r"Row \d+ of .* is damaged"):
        images.read(broken)
    with pytest.raises(MonoevalError, match=r"Row \d+ of .* has no image"):
        images.read(missing)


# Bad input, one sentence each


def test_a_folder_without_classes_is_of_one_and_its_test_images_are_no_training_images(tmp_path: Path) -> None:
    paths = ("flat/1.png", "flat/b.PNG", "flat/note.txt", "splits/train/2.png", "splits/test/3.png",
             "one/all/old/4.png", "one/5.png", "two/cat/6.png", "two/dog/7.png", "few/val/8.png")  # fmt: skip
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(png(1))

    def found(name: str, **more: int) -> list[str] | None:
        images = unlabelled(DataSpec(name=str(tmp_path / name), **more))
        return None if images is None else images.ids.tolist()

    assert found("flat") == ["1.png", "b.PNG"]
    assert found("splits") == ["train/2.png"]
    assert found("one") == ["5.png", "all/old/4.png"]
    assert found("two") is found("few") is None
    assert found("splits", train_split="test") == ["test/3.png"]
    assert len(found("one", limit=1)) == 1
    assert unlabelled(DataSpec(name="digits")) is None
    for name in ("flat", "splits", "one"):
        with pytest.raises(NoClassesError):
            load_data(DataSpec(name=str(tmp_path / name)))
    images = unlabelled(DataSpec(name=str(tmp_path / "one")))
    assert (images.class_names, images.labels.tolist()) == (("any",), [0, 0])
    for more in ("splits/annotations/x.json", "splits/test/cat/9.png", "flat/meta/x.json"):
        (tmp_path / more).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / more).write_bytes(png(2))
        with pytest.raises(NoClassesError):
            load_data(DataSpec(name=str(tmp_path / more.partition("/")[0])))
    assert found("splits") == ["train/2.png"]
    with pytest.raises(NoClassesError):
        load_data(DataSpec(name=str(tmp_path / "splits"), train_split="train"))
    np.testing.assert_array_equal(images.read(1), np.ones((4, 4, 3)))


def refused(name: Path | str, match: str, **fields: str) -> None:
    with pytest.raises(MonoevalError, match=match) as caught:
        load_data(DataSpec(name=str(name), **fields))
    assert "\n" not in str(caught.value)


def test_missing_empty_and_wrong_folders(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "There is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is empty")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/1.png").write_bytes(png(1))
    refused(tmp_path / "flat", "no class folders")
    for split in ("train", "test"):
        (tmp_path / "splits" / split).mkdir(parents=True)
        (tmp_path / "splits" / split / "1.png").write_bytes(png(1))
    refused(
        tmp_path / "splits", r"has splits \(test, train\) and no classes to train on: .*/splits/train/cat/1.jpg"
    )
    refused(tmp_path / "flat/1.png", "is a file")
    (tmp_path / "text/cat").mkdir(parents=True)
    (tmp_path / "text/cat/a.txt").write_text("")
    refused(tmp_path / "text", "no images in class folders")
    refused(image_folder(tmp_path / "one", classes=("cat",)), r"one class \(cat\)")
    refused(image_folder(tmp_path / "few", n=1), "too few images to hold some out")
    refused("~nosuchuserhere/x", "cannot be read")


def test_a_class_folder_without_images_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_folder(tmp_path / "pets")
    (tmp_path / "pets/fish").mkdir()
    assert load_data(DataSpec(name=str(tmp_path / "pets"))).train.class_names == ("cat", "dog")
    assert "fish has no images" in caplog.text


def test_test_classes_without_training_images(tmp_path: Path) -> None:
    image_folder(tmp_path / "p/train", n=2)
    image_folder(tmp_path / "p/test", classes=("cat", "fish"), n=2)
    refused(tmp_path / "p", r"classes with test images but no training images \(fish\)")


def test_bad_tables(tmp_path: Path) -> None:
    write(tmp_path / "null/train.parquet", table(range(4), [0, None, 1, None]))
    refused(tmp_path / "null", "2 of 4 rows without a label")
    write(tmp_path / "none/train.parquet", table(range(1), [0]).slice(0, 0))
    refused(tmp_path / "none", "has no rows")
    write(tmp_path / "float/train.parquet", table(range(2), [0.5, 1.5]))
    refused(tmp_path / "float", "no column that is clearly the label")
    refused(tmp_path / "float", "cannot be the label", label_column="label")
    refused(tmp_path / "float", "did you mean 'label'", label_column="lable")
    write(tmp_path / "noimage/train.parquet", pa.table({"x": [1, 2], "label": [0, 1]}))
    refused(tmp_path / "noimage", r"clearly the image: name one with --image-column .*x \(int64\)")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/train.parquet").write_bytes(b"PAR1 but not really")
    refused(tmp_path / "broken", "cannot be read")
    saved(tmp_path / "saved", {"train": table(range(4), [0, 1, 0, 1])})
    (tmp_path / "saved/train/state.json").write_text("{")
    refused(tmp_path / "saved", "cannot be read")


def test_runs_that_were_started_in_the_folder_are_no_data(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos")
    before = load_data(DataSpec(name=str(root)))
    for part in ("tests", "predictions"):
        write(root / "runs/study-1" / part / "x.parquet", pa.table({"row_id": ["1"]}))
    (root / "runs/study-1/results.jsonl").write_text("{}\n")
    after = load_data(DataSpec(name=str(root)))
    assert after.train.class_names == ("cat", "dog")
    assert after.train.fingerprint == before.train.fingerprint


@pytest.mark.parametrize(("limit", "said"), [(2, True), (3, False), (30, False)])
def test_a_limit_below_the_number_of_classes_is_said(
    limit: int, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path / "photos", ("ape", "cat", "dog"))
    load_data(DataSpec(name=str(root), limit=limit))
    assert ("leaves some of the 3 classes" in caplog.text) == said


def test_unknown_names() -> None:
    refused("digit", "did you mean 'digits'")
    refused("zzzzzzzz", "monoeval list data")
    refused("a/b/c", "no data set named")
    refused("", "no data set named")
    assert {"digits", "digits-printed", "cifar10", "cifar100"} <= set(DATASETS)
    assert set(load.ALIASES) <= set(DATASETS)


# The hub


def test_offline_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> socket.socket:
        raise OSError("no network")

    monkeypatch.setattr(hub.socket, "create_connection", unreachable)
    monkeypatch.setattr(hub, "_fetch", lambda *_: pytest.fail("fetched without a network"))
    started = time.monotonic()
    refused("cifar10", "'uoft-cs/cifar10' is not in the local cache and .* cannot be reached: .*digits")
    assert time.monotonic() - started < 5


def test_a_slow_network_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "CONNECT_SECONDS", -0.9)

    def slow(*_: object, **__: object) -> socket.socket:
        time.sleep(3)
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", slow)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    started = time.monotonic()
    refused("owner/name", "cannot be reached")
    assert time.monotonic() - started < 2


def cached(root: Path, configuration: str, splits: dict[str, pa.Table]) -> None:
    """What `load_dataset` leaves in its cache."""
    folder = root / "owner___some_set" / configuration / "0.0.0" / "abc123"
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        stream(folder / f"some_set-{name}.arrow", rows)
    (folder / "dataset_info.json").write_text(json.dumps({"splits": {name: {} for name in splits}}))


def test_what_was_fetched_once_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_reachable", lambda *_: pytest.fail("looked for a network"))
    cached(tmp_path / "hub", "first", {"train": table(range(4), [0, 1] * 2), "test": table(range(4, 6), [0, 1])})
    data = load_data(DataSpec(name="owner/SomeSet"))
    assert first_pixels(data.train) == [0, 1, 2, 3]
    assert first_pixels(data.test) == [4, 5]
    assert data.train.name == "owner/SomeSet"
    cached(tmp_path / "hub", "second", {"train": table(range(10, 14), [0, 1] * 2)})
    refused("owner/SomeSet", r"configurations first, second .* owner/SomeSet:first")
    assert len(load_data(DataSpec(name="owner/SomeSet:second")).train) == 2


def test_fetching_reads_what_the_library_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    saved(tmp_path / "d", {"train": table(range(8), ["a", "b"] * 4), "test": table(range(2), ["a", "b"])})
    found = {
        n: datasets.Dataset.from_file(str(next((tmp_path / "d" / n).glob("*.arrow")))) for n in ("train", "test")
    }
    monkeypatch.setattr(hub, "_reachable", lambda *_: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: found)
    assert first_pixels(load_data(DataSpec(name="owner/name")).test) == [0, 1]

    def gated(*_: object) -> None:
        raise ValueError("Dataset is gated.\nMore lines")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    refused("owner/name", r"could not be fetched \(Dataset is gated\)")
