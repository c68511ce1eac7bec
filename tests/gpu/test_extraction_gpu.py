"""Extraction on CUDA: agreement with the CPU, bf16, and batches that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from monoeval.backbones import extract as extraction
from monoeval.backbones.extract import extract
from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import ImageSet

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (80, 40, 48, 3), dtype=np.uint8)
    ids = np.array([str(i) for i in range(80)])
    return ImageSet("noise", np.zeros(80, np.int64), ("any",), ids, None, "noise", pixels.__getitem__)


def load(device, precision):
    spec = BackboneSpec(model="test_resnet", weights="random", precision=precision)
    return load_backbone(spec, device=device)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.999)])
def test_features_agree_with_the_cpu(images, precision, least):
    there, here = load("cuda", precision), load("cpu", "fp32")
    assert there.fingerprint == here.fingerprint
    features = extract(there, "gpu", images, [None])[0].load()
    expected = extract(here, "cpu", images, [None])[0].load()
    assert torch.nn.functional.cosine_similarity(features, expected).min() > least


def test_auto_precision_is_repeated(images):
    first, again = load("auto", "auto"), load("auto", "auto")
    assert first.device.type == "cuda"
    assert first.precision == again.precision
    sets = [extract(b, "auto", images, [None])[0] for b in (first, again)]
    assert sets[0].key == sets[1].key


def test_a_batch_without_room_is_halved(images, monkeypatch):
    whole = load("cuda", "fp32")
    sizes = []

    def tight(x):
        if len(x) > 20:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(x))
        return whole.features(x)

    monkeypatch.setitem(extraction.BATCH, "cuda", 64)
    features = extract(replace(whole, features=tight), "tight", images, [None])[0].load()
    assert sum(sizes) == 80
    expected = extract(whole, "roomy", images, [None])[0].load()
    assert torch.nn.functional.cosine_similarity(features, expected).min() > 0.99999
