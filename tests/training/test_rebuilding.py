"""A hidden piece is the piece that the token stands for, and guesses come from the decoder."""

import numpy as np
import pytest
import torch
from PIL import Image

from coral_lab import Product
from coral_lab.errors import CheckpointError, ItemError
from coral_lab.models.inputs import prompt
from coral_lab.models.vision import vision_of
from coral_lab.training.config import TrainConfig
from coral_lab.training.loop import Step, backward, train_loop
from coral_lab.training.rebuilding import CELL, HIDDEN, Rebuilt, _cells, _nearest, rebuild
from coral_lab.training.reconstruction import Coral, decoders, load_decoders
from tests.conftest import noise


@pytest.fixture
def product():
    return Product("a", "a red bag", noise(84, 56, 1), "bag")


def test_a_piece_has_the_colour_of_its_tokens_patches(random_model, product):
    """Cells run as image tokens do: row by row, merged patches together."""
    vision = vision_of(random_model, [prompt(random_model, product)])
    processor = random_model.processor.image_processor
    values = processor(images=[product.image], return_tensors="pt")["pixel_values"]
    merged = values.view(6, 4, 3, -1).mean((1, 3))  # token, channel
    mean, deviation = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    expected = (merged * deviation + mean) * 255
    cells = _cells(random_model, product, vision)
    found = torch.tensor(np.stack([np.asarray(cell).mean((0, 1)) for cell in cells]), dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=4, rtol=0)


def test_a_perfect_prediction_finds_its_own_piece(random_model, product):
    other = Product("b", "", noise(84, 84, 2), "bag")
    vision = vision_of(random_model, [prompt(random_model, product)])
    features = next(iter(vision.features.values()))
    with torch.inference_mode():
        lent = _nearest(
            random_model, torch.nn.functional.layer_norm(features, features.shape[-1:]), [other, product]
        )
    for piece, cell in zip(lent, _cells(random_model, product, vision), strict=True):
        assert np.array_equal(np.asarray(piece), np.asarray(cell))


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_it_shows_what_is_hidden_and_what_is_not(random_model, shop, product, rate):
    heads = decoders(random_model, Coral())
    found = rebuild(random_model, heads, product, gallery=[product], rate=rate)
    assert found.shown.size == (3 * CELL, 2 * CELL)
    assert "".join(word for word, _, _ in found.words) == "Represent the given product: \n a red bag"
    hidden = [shown.getcolors(1) == [(CELL**2, HIDDEN)] for shown in pieces(found.shown)]
    assert all(hidden) if rate == 1 else 0 < sum(hidden) < 6
    page = found._repr_html_()
    assert page.count("<img") == 3
    assert page.count("<s>") == sum(hidden for _, hidden, _ in found.words)
    assert 0 <= found.guessed <= 1
    asked = rebuild(random_model, heads, product, shop.queries[0], gallery=[product], rate=rate)
    assert shop.queries[0].id in asked.source
    assert [word[:2] for word in asked.words] == [word[:2] for word in found.words]


def pieces(picture):
    return [
        picture.crop((x, y, x + CELL, y + CELL))
        for y in range(0, picture.height, CELL)
        for x in range(0, picture.width, CELL)
    ]


def test_what_cannot_be_rebuilt_is_said(random_model, product):
    with pytest.raises(ItemError, match="has no picture"):
        rebuild(
            random_model, decoders(random_model, Coral()), Product("b", "bag", None, "bag"), gallery=[product]
        )
    with pytest.raises(ValueError, match="both vision and language"):
        rebuild(random_model, decoders(random_model, Coral(vision=0)), product, gallery=[product])


def test_decoders_are_loaded_as_they_were_saved(random_folder, random_model, tmp_path):
    from coral_lab import load

    model = load(random_folder)
    heads = decoders(model, Coral(language=0), seed=3, longest=50)
    weight = heads.by_kind["vision"].out.weight
    step = lambda number: Step(backward({"pull": (weight - 1).square().mean()}))  # noqa: E731
    train_loop(model, step, TrainConfig(steps=1), tmp_path, decoders=heads)
    found = load_decoders(model, tmp_path)
    assert found.longest == 50
    for name, value in heads.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    with pytest.raises(CheckpointError, match=r"decoders.safetensors is missing; train"):
        load_decoders(model, random_folder)


def test_the_share_of_hidden_words_that_were_guessed():
    words = (("a", True, "a"), ("b", True, "c"), ("d", True, "d"), ("f", True, "e"), ("e", False, "e"))
    grey = Image.new("RGB", (2, 2), HIDDEN)
    assert Rebuilt(Product("p"), "", grey, grey, words).guessed == 2 / 4
    assert np.isnan(Rebuilt(Product("p"), "", grey, grey, words[-1:]).guessed)


def test_the_nearest_piece_is_that_of_the_nearest_direction(random_model, product):
    """Lengths tell nothing, neither of what is predicted nor of what is there."""
    other = Product("b", "", noise(84, 84, 2), "bag")
    vision = vision_of(random_model, [prompt(random_model, own) for own in (product, other)])
    features = torch.cat(list(vision.features.values())).float()
    there = torch.nn.functional.layer_norm(features, features.shape[-1:])
    predicted = torch.randn(300, features.shape[1], generator=torch.Generator().manual_seed(0))
    cells = [cell for own in (product, other) for cell in _cells(random_model, own, vision)]
    nearest = torch.cosine_similarity(predicted[:, None], there[None], dim=-1).argmax(-1)
    with torch.inference_mode():
        lent = _nearest(random_model, 3 * predicted, [product, other])
    for piece, i in zip(lent, nearest.tolist(), strict=True):
        assert np.array_equal(np.asarray(piece), np.asarray(cells[i]))
