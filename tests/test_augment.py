"""Moved pictures are what the image processor would have made of the moved picture."""

import pytest
import torch
from PIL import Image

from coral_lab import augment
from tests.conftest import noise


@pytest.mark.parametrize("size", [(84, 84), (56, 112)])
def test_a_move_in_patches_is_a_move_of_the_picture(random_model, size):
    processor = random_model.processor.image_processor
    pictures = [noise(*size, seed=seed) for seed in (1, 2)]
    batch = processor(images=pictures, return_tensors="pt")
    by = torch.tensor([[3, 0], [-2, 4]])  # y, x
    moved = augment.shift(
        batch["pixel_values"], batch["image_grid_thw"], by, processor.merge_size, processor.patch_size
    )
    expected = [move(pictures[0], 0, 3), move(pictures[1], 4, -2)]
    torch.testing.assert_close(moved, processor(images=expected, return_tensors="pt")["pixel_values"])


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
    still = torch.zeros(3, 2, dtype=torch.long)
    same = augment.shift(
        batch["pixel_values"], batch["image_grid_thw"], still, processor.merge_size, processor.patch_size
    )
    assert torch.equal(same, batch["pixel_values"])
