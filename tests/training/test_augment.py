"""Moved pictures are what the image processor would have made of the moved picture."""

import math

import pytest
import torch
from PIL import Image

from coral_lab import Product
from coral_lab.models.inputs import prompt
from coral_lab.models.pixels import key
from coral_lab.training import augment
from tests.conftest import noise


@pytest.mark.parametrize("size", [(84, 84), (56, 112)])
def test_a_move_in_patches_is_a_move_of_the_picture(random_model, size):
    processor = random_model.processor.image_processor
    pictures = [noise(*size, seed=seed) for seed in (1, 2)]
    batch = processor(images=pictures, return_tensors="pt")
    moves = torch.tensor([[3.0, 0, 1, 0], [-2, 4, 1, 0]])
    moved = moved_by(processor, batch, moves)
    expected = [move(pictures[0], 0, 3), move(pictures[1], 4, -2)]
    expected = processor(images=expected, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(84, 84), (56, 112)])
def test_a_turned_and_enlarged_picture_is_as_pillow_makes_it(random_model, size):
    processor = random_model.processor.image_processor
    picture = noise(*size, seed=1).resize((14, 14)).resize(size, Image.Resampling.BICUBIC)
    batch = processor(images=[picture], return_tensors="pt")
    moved = moved_by(processor, batch, torch.tensor([[2.0, -3, 1.1, 10]]))
    # Pillow maps places of the result, measured from the corner, to places of the picture.
    cos, sin = math.cos(math.radians(10)) / 1.1, math.sin(math.radians(10)) / 1.1
    x, y = size[0] / 2, size[1] / 2
    back = (cos, sin, x - cos * (x - 3) - sin * (y + 2), -sin, cos, y + sin * (x - 3) - cos * (y + 2))
    expected = picture.transform(size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    inside = Image.new("L", size, 255).transform(size, Image.Transform.AFFINE, back)
    expected.paste(picture.resize((1, 1)).resize(size), mask=inside.point(lambda value: 255 - value))
    expected = processor(images=[expected], return_tensors="pt")["pixel_values"]
    assert ((moved - expected).abs() < 0.05).float().mean() > 0.8  # all but what came in over the edge


def move(picture: Image.Image, x: int, y: int) -> Image.Image:
    """The picture moved by (x, y), its edge repeated."""
    width, height = picture.size
    moved = Image.new("RGB", picture.size)
    for j in range(height):
        for i in range(width):
            source = min(max(i - x, 0), width - 1), min(max(j - y, 0), height - 1)
            moved.putpixel((i, j), picture.getpixel(source))
    return moved


def test_pictures_of_several_sizes_keep_their_place(random_model):
    processor = random_model.processor.image_processor
    pictures = [noise(84, 84, 1), noise(56, 112, 2), noise(84, 84, 3)]
    batch = processor(images=pictures, return_tensors="pt")
    same = moved_by(processor, batch, torch.tensor([augment.STILL] * 3))
    torch.testing.assert_close(same, batch["pixel_values"], rtol=0, atol=1e-3)


def test_moves_are_small():
    """Five pixels, an eighth in size and ten degrees either way, each as likely as any other."""
    moves = augment.draw_moves(1000) - torch.tensor(augment.STILL)
    bounds = torch.tensor([5, 5, 0.12, 10])
    for end, sign in ((moves.amax(0), 1), (moves.amin(0), -1)):
        assert (sign * end <= bounds * 1.0001).all()
        assert (sign * end > 0.95 * bounds).all()
    torch.testing.assert_close(moves.std(0), bounds / 3**0.5, rtol=0.1, atol=0)


def moved_by(processor, batch, moves: torch.Tensor) -> torch.Tensor:
    return augment.move(
        batch["pixel_values"], batch["image_grid_thw"], moves, processor.merge_size, processor.patch_size
    )


def test_each_picture_has_one_move_and_none_without_moves(random_model):
    one, two = (prompt(random_model, Product(f"p{i}", "", noise(56, 56, i), "bag")) for i in (1, 2))
    moves = augment.moves_for([one, two, one])
    assert list(moves) == [key(one.pictures[0]), key(two.pictures[0])]
    assert augment.moving(random_model, None) is None
    still = augment.moving(random_model, dict.fromkeys(moves, torch.tensor(augment.STILL)))
    processor = random_model.processor.image_processor
    batch = processor(images=[two.pictures[0], one.pictures[0]], return_tensors="pt")
    moved = still(list(moves)[::-1], batch["pixel_values"], batch["image_grid_thw"])
    torch.testing.assert_close(moved, batch["pixel_values"], rtol=0, atol=1e-3)
