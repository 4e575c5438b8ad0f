"""Augmentation: what each policy may do to an image, that it repeats, and that it does not depend on the batch."""

import pytest
import torch

from lipray.errors import TrainingError
from lipray.train.augment import POLICIES, augment, draw
from lipray.train.distort import DISTORTIONS, rotate, shear_x, translate_x, turned, warp

NAMES = list(POLICIES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=40, shape=(3, 16, 24)):
    return torch.rand(count, *shape, generator=seeded(9))


@pytest.mark.parametrize("policy", NAMES)
def test_it_repeats_and_leaves_the_batch_alone(policy):
    x = pictures()
    before = x.clone()
    one, two = augment(x, policy, seeded()), augment(x, policy, seeded())
    assert torch.equal(one, two)
    assert torch.equal(x, before)
    assert one.shape == x.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(one, x) == (policy == "none")
    assert policy == "none" or not torch.equal(one, augment(x, policy, seeded(1)))


@pytest.mark.parametrize("policy", NAMES)
def test_workers_do_together_what_one_would(policy):
    x = pictures()
    draws = draw(policy, len(x), seeded())
    whole = augment(x, policy, draws)
    assert torch.equal(whole, augment(x, policy, seeded()))
    for rank in range(4):
        assert torch.equal(augment(x[rank::4], policy, draws[rank::4]), whole[rank::4])


def test_half_of_the_images_are_flipped_and_all_are_cropped():
    x = pictures(400, (1, 16, 16))
    new = augment(x, "crop-flip", seeded())
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    places = [(flipped, down, right) for flipped in (False, True) for down in range(5) for right in range(5)]
    seen = []
    for old, picture in zip(padded, new, strict=True):
        matches = [place for place in places if torch.equal(picture, window(old, *place))]
        assert len(matches) == 1
        seen += matches
    assert 160 < sum(flipped for flipped, _, _ in seen) < 240
    assert {(down, right) for _, down, right in seen} == {(down, right) for down in range(5) for right in range(5)}


def window(padded, flipped, down, right):
    cut = padded[:, down : down + 16, right : right + 16]
    return cut.flip(-1) if flipped else cut


@pytest.mark.parametrize(("policy", "share"), [("shift", 0.5), ("crop-flip-rand", None)])
def test_half_of_the_images_stay(policy, share):
    x = pictures(400, (1, 8, 8))
    stayed = (augment(x, policy, seeded()) == x).flatten(1).all(1).double().mean()
    assert 0.4 < stayed < 0.6 if share else stayed < 0.2


def test_shifts_are_small():
    x = torch.zeros(200, 1, 9, 9)
    x[:, 0, 4, 4] = 1
    new = augment(x, "shift", seeded())[:, 0]
    places = torch.arange(9.0) - 4
    down = (new.sum(2) @ places) / new.sum((1, 2))
    assert down.abs().max() < 1.25  # a pixel, turned, and the rounding of a bilinear image
    assert down.abs().max() > 0.8
    assert new[:, :2].max() == 0


def test_warp_moves_the_way_it_says():
    x = pictures(3, (2, 6, 10))
    zero = torch.zeros(3)
    moved = warp(x, turned(zero, zero + 2, zero - 1))
    torch.testing.assert_close(moved[:, :, :5, 2:], x[:, :, 1:, :8])
    assert moved[..., :2].abs().max() < 1e-5
    quarter = warp(x[..., :6], turned(zero + torch.pi / 2, zero, zero))
    torch.testing.assert_close(quarter, x[..., :6].rot90(-1, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda each: each.__name__)
def test_distortions(distortion):
    x = pictures()
    if distortion.__name__ != "autocontrast":
        torch.testing.assert_close(distortion(x, torch.zeros(len(x))), x, atol=2.1e-3, rtol=0)
    for strength in (-1.0, 1.0):
        new = distortion(x, torch.full((len(x),), strength))
        assert new.shape == x.shape
        assert torch.isfinite(new).all()
        assert new.min() >= -1e-6
        assert new.max() <= 1 + 1e-6
        assert distortion.__name__ == "identity" or not torch.equal(new, x)


def test_turns_do_not_shear_what_is_not_square():
    """A turn keeps distances on an image that is wider than high."""
    x = torch.zeros(1, 1, 21, 41)
    x[0, 0, 10, 30] = 1
    turned_picture = rotate(x, torch.ones(1))[0, 0]
    down, right = torch.nonzero(turned_picture > 0.2).double().mean(0) - torch.tensor([10.0, 20.0])
    assert abs(float(torch.hypot(down, right)) - 10) < 0.3
    assert abs(float(torch.rad2deg(torch.atan2(down, right)))) == pytest.approx(15, abs=2)
    assert translate_x(x, torch.ones(1))[0, 0].nonzero()[:, 1].double().mean() == pytest.approx(35.1, abs=0.5)
    assert shear_x(x, torch.ones(1))[0, 0, 10, 30] == pytest.approx(1, abs=1e-5)


def test_what_is_refused():
    with pytest.raises(TrainingError, match=r"no such policy(.|\n)*crop-flip-rand"):
        augment(pictures(), "mixup", seeded())
    with pytest.raises(TrainingError, match=r"\(40, 4\), not \(40, 3\)"):
        augment(pictures(), "shift", draw("crop-flip", 40, seeded()))
