"""Images that several tests of the room extract features from."""

import numpy as np
import pytest

from monoeval.data.images import ImageSet


@pytest.fixture(scope="session")
def pictures() -> ImageSet:
    """Seventy random images of 20×24 pixels, read lazily as a data set's are."""
    pixels = np.random.default_rng(5).integers(0, 256, (70, 20, 24, 3), dtype=np.uint8)
    ids = np.array([f"picture{i}" for i in range(70)])
    return ImageSet("pictures", np.zeros(70, np.int64), ("thing",), ids, None, "fp-pictures", pixels.__getitem__)
