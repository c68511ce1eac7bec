"""Domains of a data set: which layouts have them, and that what is held out is seen by nothing that is fitted."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from monoeval.data.images import DataSpec, ImageSet
from monoeval.data.load import load_data
from monoeval.errors import UsageError

DOMAINS = ("cartoon", "photo", "sketch")


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def value_of(domain: int, label: int, row: int) -> int:
    return 80 * domain + 20 * label + row


def folders(root: Path) -> Path:
    for d, domain in enumerate(DOMAINS):
        for c, name in enumerate(("cat", "dog")):
            (root / domain / name).mkdir(parents=True)
            for row in range(10):
                (root / domain / name / f"{row}.png").write_bytes(png(value_of(d, c, row)))
    return root


def rows_of(domain: int) -> list[tuple[bytes, str]]:
    return [(png(value_of(domain, c, row)), name) for row in range(10) for c, name in enumerate(("cat", "dog"))]


def a_file_each(root: Path) -> Path:
    root.mkdir()
    for d, domain in enumerate(DOMAINS):
        images, labels = zip(*rows_of(d), strict=True)
        pq.write_table(pa.table({"image": images, "label": labels}), root / f"{domain}.parquet")
    return root


def a_column(root: Path, column: str = "domain") -> Path:
    root.mkdir()
    rows = [(image, label, DOMAINS[d]) for d in (2, 0, 1) for image, label in rows_of(d)]
    images, labels, domains = zip(*rows, strict=True)
    table = pa.table({"image": images, "label": labels, column: domains})
    pq.write_table(table, root / "train.parquet")
    return root


LAYOUTS = [folders, a_file_each, a_column]


def domains_of(images: ImageSet) -> set[str]:
    return {DOMAINS[int(images.read(row)[0, 0, 0]) // 80] for row in range(len(images))}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_its_domains_and_classes(layout, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = load_data(DataSpec(name=str(layout(tmp_path / "set"))))
    assert data.domains == DOMAINS
    assert data.train.class_names == ("cat", "dog")
    assert domains_of(data.train) == domains_of(data.test) == set(DOMAINS)
    assert data.whole is not None
    values = sorted(int(data.whole.read(row)[0, 0, 0]) for row in range(len(data.whole)))
    assert values == sorted(value_of(d, c, row) for d in range(3) for c in range(2) for row in range(10))
    label = [(int(data.whole.read(row)[0, 0, 0]) % 80) // 20 for row in range(len(data.whole))]
    assert data.whole.labels.tolist() == label
    assert data.train.groups is None  # a domain is no cluster of the statistics


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_choice_of_domains_is_all_that_is_read(layout, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    name = str(layout(tmp_path / "set"))
    every = load_data(DataSpec(name=name))
    some = load_data(DataSpec(name=name, domains=("sketch", "cartoon")))
    assert some.domains == ("cartoon", "sketch")
    assert domains_of(some.train) == domains_of(some.test) == {"cartoon", "sketch"}
    # each domain is divided by itself, so its test rows are the same whatever else is chosen
    kept = {i for d in ("cartoon", "sketch") for i in load_data(DataSpec(name=name, domains=(d,))).test.ids}
    assert set(some.test.ids) == kept <= set(every.test.ids)
    assert len(kept) == 2 * 2 * 3  # 30 % of ten rows a class


@pytest.mark.parametrize("layout", [folders, a_file_each])
def test_a_held_out_domain_cannot_change_what_is_fitted(layout, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = layout(tmp_path / "set")
    source = DataSpec(name=str(root), domains=("cartoon", "photo"))
    held_out = DataSpec(name=str(root), domains=("sketch",))
    before, target = load_data(source).train.fingerprint, load_data(held_out).train.fingerprint
    if layout is folders:
        (root / "sketch/cat/3.png").write_bytes(png(5))
    else:
        pq.write_table(pa.table({"image": [png(9)] * 8, "label": ["cat", "dog"] * 4}), root / "sketch.parquet")
    assert load_data(source).train.fingerprint == before
    assert load_data(held_out).train.fingerprint != target
    (root / "photo" / "cat" / "0.png").write_bytes(png(5)) if layout is folders else pq.write_table(
        pa.table({"image": [png(9)] * 8, "label": ["cat", "dog"] * 4}), root / "photo.parquet"
    )
    assert load_data(source).train.fingerprint != before


def test_domains_may_lack_classes_and_number_them_unlike(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    for picture in (root / "photo/dog").iterdir():
        picture.unlink()
    (root / "photo/dog").rmdir()
    (root / "photo/ape").mkdir()
    (root / "photo/ape/0.png").write_bytes(png(1))
    (root / "photo/bee").mkdir()  # two classes that all share are what makes domains of folders
    with pytest.raises(UsageError, match="no domains"):
        load_data(DataSpec(name=str(root), domains=("photo",)))
    parquet = a_file_each(tmp_path / "tables")
    pq.write_table(pa.table({"image": [png(1)] * 6, "label": ["dog", "ape"] * 3}), parquet / "sketch.parquet")
    data = load_data(DataSpec(name=str(parquet), domains=("photo", "sketch")))
    assert data.whole is not None
    assert [data.whole.class_names[label] for label in data.whole.labels[-6:]] == ["dog", "ape"] * 3


def test_columns_are_found_by_their_name_or_by_the_option(tmp_path: Path) -> None:
    name = str(a_column(tmp_path / "set", column="style"))
    assert load_data(DataSpec(name=name)).domains == ()
    data = load_data(DataSpec(name=name, domain_column="style", domains=("photo",)))
    assert domains_of(data.train) == {"photo"}


def test_class_folders_with_folders_of_their_own_are_no_domains(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            (tmp_path / name / part).mkdir(parents=True)
            for row in range(4):
                (tmp_path / name / part / f"{row}.png").write_bytes(png(row))
    data = load_data(DataSpec(name=str(tmp_path)))
    assert data.domains == ()
    assert data.train.class_names == ("cat", "dog")


def refused(match: str, **fields: object) -> None:
    with pytest.raises(UsageError, match=match):
        load_data(DataSpec.model_validate(fields))


def test_bad_domains_are_one_sentence(tmp_path: Path) -> None:
    root = folders(tmp_path / "set")
    name = str(root)
    refused(
        "no domain 'sketches', only cartoon, photo, sketch: did you mean 'sketch'", name=name, domains=["sketches"]
    )
    refused("no domain 'zzz', only .*: choose among those", name=str(a_column(tmp_path / "c")), domains=["zzz"])
    refused("set has no domains: give each a folder", name=name, train_split="photo", domains=["photo"])
    refused("digits has no domains", name="digits", domains=["photo"])
    refused("no columns: leave out --domain-column", name=name, domain_column="domain")
    refused("no column 'stlye'", name=str(a_column(tmp_path / "s", "style")), domain_column="stlye")
