"""Batched changes of colour, blur and crops against torchvision's functions, one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference
from torchvision.transforms.functional import InterpolationMode

from monoeval.training import colours
from monoeval.training.augment import SimCLRAugmentation, crop_matrix, random_boxes

SIDE = 20


def photographs() -> torch.Tensor:
    """Smooth random images uint8 [6, 3, SIDE, SIDE], with black, white, grey and pure colours among them."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (6, 3, 6, 6), dtype=np.uint8))
    images = reference.resize(coarse, [SIDE, SIDE], antialias=True)
    images[0, :, :4, :4] = torch.tensor([0, 255, 100, 30]).expand(4, 4)
    images[1, :, :2, :3] = (255 * torch.eye(3)).view(3, 1, 3).to(torch.uint8)
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "strengths"),
    [
        (colours.brighter, reference.adjust_brightness, (0.2, 0.7, 1.0, 1.3, 1.8, 0.0)),
        (colours.more_contrast, reference.adjust_contrast, (0.2, 0.7, 1.0, 1.3, 1.8, 0.0)),
        (colours.more_saturated, reference.adjust_saturation, (0.2, 0.7, 1.0, 1.3, 1.8, 0.0)),
        (colours.turned_hue, reference.adjust_hue, (-0.2, -0.05, 0.0, 0.1, 0.2, 0.5)),
        (
            colours.blurred,
            lambda x, s: reference.gaussian_blur(x, [13, 13], [s, s]),
            (0.1, 0.5, 1.0, 1.5, 1.9, 2.0),
        ),
    ],
)
def test_each_image_is_changed_as_torchvision_changes_it_alone(ours, theirs, strengths):
    images = photographs().float() / 255
    out = ours(images, torch.tensor(strengths))
    for image, strength, changed in zip(images, strengths, out, strict=True):
        torch.testing.assert_close(changed, theirs(image, strength), atol=2e-5, rtol=0)


def test_grey_is_torchvisions():
    images = photographs().float() / 255
    torch.testing.assert_close(colours.grey(images), reference.rgb_to_grayscale(images, 3))


@pytest.mark.parametrize(
    "box", [(0, 0, 20, 20), (3, 5, 7, 9), (13, 0, 7, 20), (19, 19, 1, 1), (2, 2, 3, 16)], ids=str
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_is_pillows_bicubic_one_up_to_its_rounding(box, mirrored):
    top, left, high, wide = box
    image = photographs()[2]
    expected = reference.resized_crop(
        Image.fromarray(image.permute(1, 2, 0).numpy()),
        top,
        left,
        high,
        wide,
        [SIDE, SIDE],
        InterpolationMode.BICUBIC,
    )
    expected = reference.hflip(expected) if mirrored else expected
    rows = crop_matrix(SIDE, torch.tensor([top]), torch.tensor([high]), torch.tensor([False]))
    columns = crop_matrix(SIDE, torch.tensor([left]), torch.tensor([wide]), torch.tensor([mirrored]))
    out = colours.resampled(image[None].float() / 255, rows, columns).clamp(0, 1)[0]
    torch.testing.assert_close(out, reference.to_tensor(expected), atol=1.5 / 255, rtol=0)


def test_boxes_are_drawn_as_torchvision_draws_them():
    """Areas and aspect ratios of 4,000 boxes have the quantiles of torchvision's."""
    from torchvision.transforms import RandomResizedCrop

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    n, blank = 4000, torch.zeros(3, 32, 32)

    def uniform(low: float, high: float, *more: int) -> torch.Tensor:
        return torch.empty(n, *more).uniform_(low, high, generator=generator)

    ours = torch.stack(random_boxes(32, 0.08, uniform), dim=1)
    theirs = torch.tensor([RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    for boxes in (ours, theirs):
        assert (boxes[:, 0] + boxes[:, 2] <= 32).all()
        assert (boxes[:, 1] + boxes[:, 3] <= 32).all()
        assert boxes.min() >= 0
    for one, other in zip(ours.T, theirs.T, strict=True):
        assert (one.float().quantile(at) - other.float().quantile(at)).abs().max() <= 1.01
        assert one.float().mean().item() == pytest.approx(other.float().mean().item(), abs=0.6)


def test_views_keep_to_the_asked_shares():
    images = photographs()[2:3].expand(600, -1, -1, -1)
    still = {"crop": 1.0, "flip": False, "jittered": 0.0, "grey": 0.0, "blurred": 0.0}

    def views(**chosen: float) -> torch.Tensor:
        return SimCLRAugmentation(**{**still, **chosen})(images, torch.Generator().manual_seed(4))

    plain = views()
    torch.testing.assert_close(plain[0], images[0].float() / 255, atol=1e-5, rtol=0)

    def changed(out: torch.Tensor) -> float:
        return ((out - plain).abs().amax(dim=(1, 2, 3)) > 1e-3).float().mean().item()

    assert changed(views(jittered=0.8)) == pytest.approx(0.8, abs=0.06)
    assert changed(views(grey=0.2)) == pytest.approx(0.2, abs=0.06)
    assert changed(views(blurred=0.5, deviations=(1.0, 2.0))) == pytest.approx(0.5, abs=0.07)
    assert changed(views(flip=True)) == pytest.approx(0.5, abs=0.07)


def test_views_are_in_range_and_repeat_with_the_seed():
    first = SimCLRAugmentation()(photographs(), torch.Generator().manual_seed(5))
    assert first.dtype == torch.float32
    assert first.shape == (6, 3, SIDE, SIDE)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, SimCLRAugmentation()(photographs(), torch.Generator().manual_seed(5)))
    assert not torch.equal(first, SimCLRAugmentation()(photographs(), torch.Generator().manual_seed(6)))
