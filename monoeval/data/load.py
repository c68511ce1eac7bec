"""From the name a person types to training and test images."""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np

from monoeval.data import cifar101, loaders, objectnet
from monoeval.data.embedded import EMBEDDED
from monoeval.data.images import Data, DataSpec, ImageSet, Ints
from monoeval.data.source import NoClassesError, Source, Splits, parquet_files, together
from monoeval.data.splits import held_out, stratified_limit
from monoeval.data.subclasses import to_superclasses
from monoeval.errors import UsageError, nearest
from monoeval.keys import key

log = logging.getLogger("monoeval")

ALIASES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "food101": "ethz/food101",
    "imagenet-1k": "ILSVRC/imagenet-1k",
    "imagenet-100": "clane9/imagenet-100",
    "imagenet-a": "barkermrl/imagenet-a",
    "imagenet-r": "axiong/imagenet-r",
    "imagenet-sketch": "clip-benchmark/wds_imagenet_sketch",
    "imagenet-v2": "clip-benchmark/wds_imagenetv2",
    "mnist": "ylecun/mnist",
    "pacs": "flwrlabs/pacs",
    "svhn": "ufldl-stanford/svhn:cropped_digits",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}
"""Short names for hub ids; `owner/name:configuration` where a data set has several."""

PUBLISHED = {
    "objectnet": "ObjectNet is read from its own folder: unpack objectnet-1.0.zip from objectnet.dev and name the "
    "folder with images and mappings in it, for example --target ./objectnet-1.0.",
    "stylized-imagenet": "Stylized-ImageNet is made from ImageNet by its authors' code "
    "(github.com/rgeirhos/Stylized-ImageNet): name the folder of WordNet folders that it wrote, for example "
    "--target ./stylized-imagenet/val.",
    "cifar10.1": f"CIFAR-10.1 is two files: put {cifar101.PIXELS} and {cifar101.LABELS} "
    "(github.com/modestyachts/CIFAR-10.1) in a folder and name it, for example --target ./cifar10.1.",
    **{
        name: f"{name} is corrupted copies of a test set: unpack it and name its folder in a recipe, "
        f"{{name: corruption, official: ./{name}}}, with {clean} as data."
        for name, clean in (("cifar10-c", "cifar10"), ("cifar100-c", "cifar100"), ("imagenet-c", "imagenet-1k"))
    },
}
"""Data sets that are read as they were published, from a folder, as the hub has no copy known to be whole: how."""

DATASETS: dict[str, str] = {
    "digits": "handwritten digits, 8 × 8, 10 classes, embedded (scikit-learn)",
    "digits-printed": "printed digits, 8 × 8, 10 classes, embedded: an ood target for digits",
    **{name: f"hub: {hub}" for name, hub in ALIASES.items()},
    **{name: how.rstrip(".") for name, how in PUBLISHED.items()},
    "OWNER/NAME[:CONFIGURATION]": "a data set of the Hugging Face hub with an image and a label column",
    "./FOLDER": "images in class folders (train/cat/1.jpg or cat/1.jpg), parquet, or a saved `datasets` folder; "
    "a folder or a parquet file a domain (photo/cat/1.jpg)",
}
"""What `monoeval list data` shows: a name to type and one line about it."""

LOADERS, REFUSED = loaders.collect(entry_points(group=loaders.GROUP), (*EMBEDDED, *ALIASES, *PUBLISHED))
"""The data sets of other packages, and why names that two packages claim cannot be used."""

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "valid", "val", "dev")


def load_data(spec: DataSpec) -> Data:
    """Training and test images of `spec`, nothing decoded yet.

    `name` is an embedded set, one of another package, a folder (it starts with `.`, `/` or `~`, or exists), a
    short name or a hub id.
    Splits are those named, else train and test (or validation, where test is missing or has no labels). Where
    there is only one, 30 % of each class (of each domain) are held out for test by a hash of the row's id, the
    same everywhere. Splits of which none is called train or test are domains of one data set.
    Classes are matched by name; those without a row in either split are left out, with a warning.
    Raises UsageError or MonoevalError, in one sentence, for anything that cannot be read as images with labels:
    NoClassesError for a folder of images without class folders, and for a single class.
    """
    data = _ready(spec) or _found(spec)
    if spec.hierarchy is not None:
        data = _changed(data, _superclasses(spec))
    elif spec.subclasses is not None:
        raise UsageError("Subclasses are of a hierarchy: name it with `hierarchy:`, for example cifar100.")
    return data if spec.limit is None else _changed(data, partial(_limited, limit=spec.limit))


def training_rows(spec: DataSpec) -> ImageSet:
    """All training rows of `spec` before its limit; all rows of a source with one split.

    Of a table or a folder the test split is not looked at, so it may lack a column that only training rows have.
    Raises as `load_data` does.
    """
    data = _ready(spec)
    if data is not None:
        rows = data.whole or data.train
    else:
        name, train, _ = _chosen(spec)
        rows = _image_set(name, train, _class_names(name, train, None))
    return rows if spec.hierarchy is None else _superclasses(spec)(rows)


def unlabelled(spec: DataSpec) -> ImageSet | None:
    """The training images of a folder in which `load_data` found no classes, within the limit; None if none."""
    path = Path(spec.name).expanduser()
    if not path.is_dir():
        return None
    from monoeval.data.folders import unlabelled_images

    source = unlabelled_images(path, spec.train_split)
    if source is None:
        return None
    images = _image_set(path.resolve().name, source, source.names)
    return images if spec.limit is None else _limited(images, spec.limit)


@cache
def _loaded(spec_json: str) -> Data:
    return load_data(DataSpec.model_validate_json(spec_json))


def loaded(spec: DataSpec) -> Data:
    """`load_data`, once in a process."""
    return _loaded(spec.model_dump_json())


def source_of(spec: DataSpec) -> str:
    """What two specifications have in common that read one folder or one set of the hub, however they name it."""
    path = Path(spec.name).expanduser()
    return str(path.resolve()) if path.exists() else ALIASES.get(spec.name, spec.name)


def _ready(spec: DataSpec) -> Data | None:
    """The data of `spec` where no folder or table is to be read for it."""
    if spec.name in REFUSED:
        raise UsageError(f"{REFUSED[spec.name]}: uninstall one of the two packages.")
    if spec.name in LOADERS:
        return loaders.load(LOADERS[spec.name], spec)
    return _embedded(spec) if spec.name in EMBEDDED else None


def _superclasses(spec: DataSpec) -> Callable[[ImageSet], ImageSet]:
    assert spec.hierarchy is not None
    return partial(to_superclasses, hierarchy=spec.hierarchy, kept=spec.subclasses)


def _changed(data: Data, change: Callable[[ImageSet], ImageSet]) -> Data:
    whole = None if data.whole is None else change(data.whole)
    return replace(data, train=change(data.train), test=change(data.test), whole=whole)


def _limited(images: ImageSet, limit: int) -> ImageSet:
    if limit < len(images.class_names) < len(images):
        log.warning(
            "A limit of %d leaves some of the %d classes of %s without an image.",
            limit, len(images.class_names), images.name,
        )  # fmt: skip
    return images.take(stratified_limit(images.labels, limit))


def _embedded(spec: DataSpec) -> Data:
    if any((spec.image_column, spec.label_column, spec.group_column, spec.train_split, spec.test_split)):
        raise UsageError(f"{spec.name} is embedded and has its own columns and splits: name none of them.")
    if spec.domains or spec.domain_column:
        raise UsageError(f"{spec.name} has no domains: leave out --domains and --domain-column.")
    return EMBEDDED[spec.name]()


def _chosen(spec: DataSpec) -> tuple[str, Source, Callable[[], Source | None]]:
    """The name of a folder or table, its training split in the domains asked for, and what reads the other."""
    name, splits = _splits(spec)
    train, read_test = _choose(name, _domains_together(name, splits, spec), spec)
    return name, _of_domains(name, train, spec.domains), read_test


def _found(spec: DataSpec) -> Data:
    name, train, read_test = _chosen(spec)
    source = read_test()
    test = None if source is None else _of_domains(name, source, spec.domains)
    names = _class_names(name, train, test)
    train_set = _image_set(name, train, names)
    if test is not None:
        return Data(train=train_set, test=_image_set(name, test, names), domains=train.domains_here)
    strata = train_set.labels if train.domain is None else train.domain * len(names) + train_set.labels
    kept, held = held_out(strata, train_set.ids, train.groups)
    if train.groups is not None:
        _check_divided(name, train_set, kept, held)
    if not len(held):
        raise UsageError(f"{name} has too few images to hold some out for test: add images or a test split.")
    return Data(train=train_set.take(kept), test=train_set.take(held), whole=train_set, domains=train.domains_here)


def _check_divided(name: str, images: ImageSet, kept: Ints, held: Ints) -> None:
    """Refuse a division by groups that leaves nothing to test on, or a class nothing to learn from."""
    if not len(held):
        raise UsageError(
            f"{name} has no group of at most 30 % of its rows that could be held out for test: give it a test "
            "split of its own."
        )
    lost = sorted(set(images.labels[held].tolist()) - set(images.labels[kept].tolist()))
    if lost:
        some = ", ".join(images.class_names[c] for c in lost[:5])
        raise UsageError(
            f"{name} has classes whose every group is held out for test ({some}): give it a test split of its own."
        )


def _domains_together(name: str, splits: Splits, spec: DataSpec) -> Splits:
    """Splits that are domains as one; those that were not asked for are not read."""
    if spec.train_split or spec.test_split or len(splits) < 2 or {*TRAIN_NAMES, *TEST_NAMES} & splits.keys():
        return splits
    wanted = _known_domains(name, spec.domains or tuple(splits), splits)
    return {"": lambda: together({domain: splits[domain]() for domain in wanted})}


def _of_domains(name: str, source: Source, domains: tuple[str, ...] | None) -> Source:
    if domains is None:
        return source
    if source.domain is None:
        raise no_domains(name)
    wanted = [source.domains.index(domain) for domain in _known_domains(name, domains, source.domains_here)]
    return source.take(np.flatnonzero(np.isin(source.domain, wanted)))


def _known_domains(name: str, wanted: Sequence[str], there: Iterable[str]) -> list[str]:
    """The domains `wanted`, in the order of `there`; raises UsageError for one that is not there."""
    there = list(there)
    for domain in wanted:
        if domain not in there:
            near = nearest(domain, there)
            advice = f"did you mean {near!r}?" if near else "choose among those."
            raise UsageError(f"{name} has no domain {domain!r}, only {', '.join(there)}: {advice}")
    return [domain for domain in there if domain in wanted]


def no_domains(name: str) -> UsageError:
    """The error for domains asked of a data set without."""
    return UsageError(
        f"{name} has no domains: give each a folder of class folders or a parquet file of its own, or name the "
        "column that holds them with --domain-column."
    )


def _splits(spec: DataSpec) -> tuple[str, Splits]:
    try:
        path = Path(spec.name).expanduser()
        is_folder = spec.name.startswith((".", "/", "~")) or (spec.name != "" and path.exists())
    except (OSError, RuntimeError, ValueError) as error:  # no permission, no such user, no such name
        raise UsageError(f"The data {spec.name!r} cannot be read ({error}): check the path.") from error
    if is_folder:
        return path.resolve().name, _folder_splits(path, spec)
    if spec.name in PUBLISHED:
        raise UsageError(PUBLISHED[spec.name])
    hub = ALIASES.get(spec.name, spec.name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", hub):
        near = nearest(spec.name, [*EMBEDDED, *ALIASES, *PUBLISHED, *LOADERS])
        advice = f"did you mean {near!r}?" if near else "`monoeval list data` shows the names."
        raise UsageError(
            f"There is no data set named {spec.name!r}: {advice} A folder is written as ./{spec.name.lstrip('/')}."
        )
    from monoeval.data.hub import hub_splits

    return spec.name, hub_splits(hub, spec)


def _folder_splits(path: Path, spec: DataSpec) -> Splits:
    if not path.exists():
        raise UsageError(f"There is no folder {spec.name}: check the path.")
    if path.is_file():
        raise UsageError(f"{path} is a file: name the folder that it lies in.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        from monoeval.data.tables import saved_splits

        return saved_splits(path, spec)
    try:
        if next(path.iterdir(), None) is None:
            raise UsageError(f"{path} is empty: check the path.")
        has_parquet = next(parquet_files(path), None) is not None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): make it readable, then run again.") from error
    if has_parquet:
        from monoeval.data.tables import parquet_splits

        return parquet_splits(path, spec)
    if (images := objectnet.images_folder(path)) is not None:
        return objectnet.objectnet_splits(images)
    if (path / cifar101.PIXELS).exists() or (path / cifar101.LABELS).exists():
        return cifar101.cifar101_splits(path)
    if (path / "labels.npy").exists():
        raise UsageError(
            f"{path} holds corrupted copies of a test set: name it in a recipe, {{name: corruption, official: "
            f"{path}}}, with the clean set as data."
        )
    from monoeval.data.folders import folder_splits

    return folder_splits(path, spec)


def _choose(name: str, splits: Splits, spec: DataSpec) -> tuple[Source, Callable[[], Source | None]]:
    """The training split, and what reads the test split: none where the training one is to be divided."""
    listed = ", ".join(sorted(splits))
    for asked in (spec.train_split, spec.test_split):
        if asked is not None and asked not in splits:
            near = nearest(asked, splits)
            advice = f"did you mean {near!r}?" if near else "choose one of those with --split."
            raise UsageError(f"{name} has no split {asked!r}, only {listed or 'one without a name'}: {advice}")
    trains = [spec.train_split] if spec.train_split else [s for s in TRAIN_NAMES if s in splits]
    if not trains and len(splits) == 1:
        trains = list(splits)
    if not trains:
        raise UsageError(
            f"{name} has the splits {listed}, and none is called train: choose one with --split, "
            f"for example --split {min(splits)}."
        )
    train = _labelled(name, trains[0], splits[trains[0]]())
    return train, partial(_test_split, name, splits, spec.test_split, trains[0])


def _test_split(name: str, splits: Splits, asked: str | None, train: str) -> Source | None:
    if asked is not None:
        return None if asked == train else _labelled(name, asked, splits[asked]())
    candidates = [s for s in TEST_NAMES if s in splits and s != train]
    for number, candidate in enumerate(candidates):
        source = splits[candidate]()
        if number < len(candidates) - 1 and len(source.labels) and (source.labels < 0).all():
            continue  # benchmarks keep the labels of their test split; validation is then what is scored
        return _labelled(name, candidate, source)
    return None


def _labelled(name: str, split: str, source: Source) -> Source:
    called = f"{name} ({split})" if split else name
    if not len(source.labels):
        raise UsageError(f"{called} has no rows: choose another split with --split.")
    unlabelled = int((source.labels < 0).sum())
    if unlabelled:
        raise UsageError(
            f"{called} has {unlabelled} of {len(source.labels)} rows without a label: remove them, or choose "
            "another column with --label-column."
        )
    return source


def _class_names(name: str, train: Source, test: Source | None) -> tuple[str, ...]:
    """Names of the classes with training rows, in the source's order (the test split brings no new ones)."""
    present = {train.names[i] for i in np.unique(train.labels)}
    tested = present if test is None else {test.names[i] for i in np.unique(test.labels)}
    names = tuple(n for n in train.names if n in present)
    if len(names) < 2:
        raise NoClassesError(
            f"{name} has one class ({names[0]}): at least two are needed, a folder or a label each."
        )
    strangers = sorted(tested - present)
    if strangers:
        raise UsageError(
            f"{name} has classes with test images but no training images ({', '.join(strangers[:5])}): add "
            "some, or remove the class."
        )
    empty = [n for n in train.names if n not in present]
    if empty:
        some = ", ".join(empty[:5])
        log.warning(
            "%s: %d of %d classes have no images and are left out (%s).", name, len(empty), len(train.names), some
        )
    return names


def _image_set(name: str, source: Source, class_names: tuple[str, ...]) -> ImageSet:
    position = {n: i for i, n in enumerate(class_names)}
    labels = np.array([position.get(n, -1) for n in source.names], dtype=np.int64)[source.labels]
    content = [list(source.keys), source.ids.tolist(), labels.tolist(), list(class_names)]
    groups = None
    if source.groups is not None:
        groups = np.unique(source.groups, return_inverse=True)[1].astype(np.int64)
        content.append(source.groups.tolist())  # they decide folds, and what a score's intervals are over
    return ImageSet(
        name=name,
        labels=labels,
        class_names=class_names,
        ids=source.ids,
        groups=groups,
        fingerprint=key(content),
        read=source.read,
    )
