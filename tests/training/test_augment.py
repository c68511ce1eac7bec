import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from monoeval.training import colours
from monoeval.training.augment import CHANGES, Augmentation, SimCLRAugmentation, crop_matrix, random_boxes

STILL = {"crop": 1.0, "rotation": 0.0, "jitter": 0.0}


def images(count: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_without_anything_to_draw_a_full_square_crop_is_nearly_the_image():
    """Only the aspect ratio is left: along one axis nothing is cut, so the middle stays the middle."""
    flat = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    out = Augmentation(**STILL)(flat, torch.Generator().manual_seed(1))
    torch.testing.assert_close(out, torch.full_like(out, 100 / 255))


def test_flip_mirrors_about_half_of_the_images_and_only_when_asked():
    gradient = torch.arange(12, dtype=torch.uint8).mul(20).expand(200, 3, 12, 12).contiguous()
    for flip, low, high in ((False, 0, 0), (True, 70, 130)):
        out = Augmentation(**STILL, flip=flip)(gradient, torch.Generator().manual_seed(2))
        mirrored = int((out[:, 0, 6, 0] > out[:, 0, 6, -1]).sum())
        assert low <= mirrored <= high


def test_the_kept_area_lies_between_crop_and_one():
    """On a linear ramp the range of the view is the width that was kept."""
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8)
    across = ramp.expand(300, 3, 24, 24).contiguous()
    along = across.transpose(2, 3).contiguous()
    augment = Augmentation(crop=0.3, rotation=0.0, jitter=0.0)

    def extent(batch: torch.Tensor, axis: int) -> torch.Tensor:
        out = augment(batch, torch.Generator().manual_seed(3))
        middle = out[:, 0, 12, :] if axis else out[:, 0, :, 12]
        return (middle[:, 18] - middle[:, 6]) / 12 / (10 / 255)

    area = extent(across, 1) * extent(along, 0)
    assert area.min() > 0.25
    assert area.max() < 1.01
    assert area.std() > 0.1


def test_views_are_in_range_differ_between_images_and_repeat_with_the_seed():
    augment = Augmentation()
    first = augment(images(), torch.Generator().manual_seed(5))
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, augment(images(), torch.Generator().manual_seed(5)))
    same = images()[:1].expand(8, -1, -1, -1)
    out = augment(same, torch.Generator().manual_seed(6))
    assert all(not torch.equal(out[0], out[i]) for i in range(1, 8))


def gentle_in_turn(augment: Augmentation, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What `Augmentation` draws and does, step after step."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(len(batch)).uniform_(low, high, generator=generator)

    side = uniform(augment.crop, 1.0).sqrt()
    aspect = uniform(-math.log(4 / 3), math.log(4 / 3)).exp().sqrt()
    wide, high = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    angle = uniform(-augment.rotation, augment.rotation).deg2rad()
    sideways, down = uniform(-1, 1) * (1 - wide), uniform(-1, 1) * (1 - high)
    if augment.flip:
        wide = wide * (uniform(0, 1) < 0.5).float().mul(2).sub(1)
    sine, cosine = angle.sin(), angle.cos()
    rows = [wide * cosine, -high * sine, sideways, wide * sine, high * cosine, down]
    pixels = batch.float() / 255
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(pixels.shape), align_corners=False)
    views = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    brightness, contrast = (uniform(1 - augment.jitter, 1 + augment.jitter).view(-1, 1, 1, 1) for _ in range(2))
    grey = views.mean(dim=(1, 2, 3), keepdim=True)
    return (((views - grey) * contrast + grey) * brightness).clamp(0, 1)


def simclr_in_turn(augment: SimCLRAugmentation, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What `SimCLRAugmentation` draws and does, each change after it is drawn."""
    count, side = len(batch), batch.shape[-1]

    def uniform(low: float, high: float, *more: int) -> torch.Tensor:
        return torch.empty(count, *more).uniform_(low, high, generator=generator)

    top, left, high, wide = random_boxes(side, augment.crop, uniform)
    mirrored = uniform(0, 1) < (0.5 if augment.flip else 0.0)
    crops = (
        crop_matrix(side, top, high, torch.zeros(count, dtype=torch.bool)),
        crop_matrix(side, left, wide, mirrored),
    )
    views = colours.resampled(batch.float() / 255, *crops).clamp(0, 1).contiguous()
    strengths = [uniform(1 - augment.jitter, 1 + augment.jitter) for _ in range(3)]
    strengths.append(uniform(-1, 1) * augment.hue)
    order = uniform(0, 1, 4).argsort(dim=1)
    jittered = uniform(0, 1) < augment.jittered
    for turn in range(4):
        for change, function in enumerate(CHANGES):
            at = jittered & (order[:, turn] == change)
            views[at] = function(views[at], strengths[change][at])
    at = uniform(0, 1) < augment.grey
    views[at] = colours.grey(views[at])
    deviations = uniform(*augment.deviations)
    at = uniform(0, 1) < augment.blurred
    views[at] = colours.blurred(views[at], deviations[at])
    return views


@pytest.mark.parametrize("flip", [False, True])
def test_views_are_to_the_bit_those_that_are_drawn_and_made_in_turn(flip):
    for augment, in_turn in (
        (Augmentation(flip=flip), gentle_in_turn),
        (SimCLRAugmentation(flip=flip), simclr_in_turn),
    ):
        ours, theirs, at_once = (torch.Generator().manual_seed(7) for _ in range(3))
        made = []
        for _ in range(2):
            made.append(augment(images(), ours))
            assert torch.equal(made[-1], in_turn(augment, images(), theirs))
        assert torch.equal(augment(images(), at_once, views=2), torch.cat(made))


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to another device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            self.count += out.device.type != "cpu" and source.device.type == "cpu"
        return out


@pytest.mark.parametrize(("augment", "most"), [(Augmentation(flip=True), 1), (SimCLRAugmentation(), 2)])
def test_all_that_is_drawn_for_a_view_is_moved_at_once(augment, most):
    """On a device that only knows shapes, as no GPU is at hand; another copy would let a GPU wait."""
    there = images().to("meta")
    augment(there, torch.Generator().manual_seed(1))  # constants are moved once
    with Copies() as copies:
        assert augment(there, torch.Generator().manual_seed(1)).shape == there.shape
    assert 1 <= copies.count <= most
