import torch

from monoeval.training.augment import Augmentation

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
