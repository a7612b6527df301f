"""Offline fixtures: a coral-mini with random weights, its folder, and pictures of many shapes."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network must fail at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("CORAL_LAB_STORE", None)  # tests that keep embeddings say where

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coral_lab import Condition, Product, Query, dataset


@pytest.fixture(scope="session")
def shop():
    """MERIT-mini's test split."""
    return dataset("mini")


@pytest.fixture(scope="session")
def random_model(shop):
    """Random weights, scaled up so that different inputs give clearly different embeddings."""
    import torch

    from coral_lab.mini.architecture import untrained
    from coral_lab.mini.recipe import corpus

    model = untrained(corpus(shop, limit=200))
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


@pytest.fixture(scope="session")
def random_folder(random_model, tmp_path_factory) -> Path:
    """The random model saved as a checkpoint, under a path with a space."""
    from coral_lab.models.saving import save

    folder = tmp_path_factory.mktemp("check points") / "random"
    save(random_model, folder)
    return folder


def states_and_gradients(model, items, count: int, forward, answers=None):
    """The last `count` states [row, count, dim] that `forward` gives and the gradients of a weighing of them,
    the padding left out. `forward` takes model, prompts, vision, batch and count.
    """
    import torch

    from coral_lab.models.forward import tokenize
    from coral_lab.models.inputs import prompt
    from coral_lab.models.vision import vision_of

    prompts = [prompt(model, item) for item in items]
    vision = vision_of(model, prompts)
    batch = tokenize(model, prompts, vision, answers)
    hidden = forward(model, prompts, vision, batch, count) * batch["attention_mask"][:, -count:, None]
    model.network.zero_grad()
    torch.manual_seed(0)
    (hidden * torch.randn_like(hidden)).sum().backward()
    found = {name: p.grad for name, p in model.network.named_parameters() if p.grad is not None}
    model.network.zero_grad()
    return hidden.detach(), found


def read_all(model, prompts, vision, batch, count: int):
    """The last `count` of all states that are there."""
    from coral_lab.models.forward import forward

    return forward(model, prompts, vision, batch)[:, -count:]


def assert_same_gradients(found, expected) -> None:
    """By the largest of all, for those that should be nothing are rounding."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() / largest < 1e-5, name


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture no other seed gives: coarse coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.NEAREST)


@pytest.fixture
def mixed_queries() -> list[Query]:
    """Queries with 2, 1, 0 and 4 pictures of several sizes, and texts of several lengths."""
    sizes = [(56, 56), (224, 112), (100, 300), (84, 84), (301, 57), (28, 28), (140, 224)]
    products = [
        Product(f"p{i}", f"title number {i} " + "long " * i, noise(*size, seed=i), "bag")
        for i, size in enumerate(sizes)
    ]
    groups = [products[:2], products[2:3], [], products[3:]]
    return [
        Query(f"q{i}", "bag", tuple(Condition("brand", product) for product in group), f" with {i} straps.")
        for i, group in enumerate(groups)
    ]
