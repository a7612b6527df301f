"""Embeddings are those of the model card's code, and do not depend on how they are batched."""

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils import process_vision_info

from coral_lab import Condition, Product, Query, Settings, encode, load, messages
from coral_lab.errors import ItemError
from coral_lab.models import embedding
from coral_lab.models import vision as vision_module
from coral_lab.models.forward import forward, last_token, normalised, tokenize
from coral_lab.models.inputs import prompt
from coral_lab.models.vision import vision_of
from coral_lab.training.augment import moves_for, moving
from tests.conftest import noise


def by_the_card(model, conversation) -> np.ndarray:
    """The card's code for one conversation: process_vision_info, processor, last hidden state of the last
    token.
    """
    text = model.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    images, videos = process_vision_info(conversation)
    batch = model.processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.network(**batch, return_dict=True, output_hidden_states=True)
    return torch.nn.functional.normalize(output.hidden_states[-1][:, -1, :], dim=-1).numpy()


@pytest.fixture
def plain(random_folder):
    """The same checkpoint loaded by transformers alone."""
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    from coral_lab.models.model import Model

    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(random_folder, dtype="auto")
    return Model("plain", network.eval(), AutoProcessor.from_pretrained(random_folder))


def test_encode_gives_what_the_card_code_gives(random_model, plain, mixed_queries, shop):
    items = [*mixed_queries, *shop.products[:3], *shop.queries[:3]]
    expected = np.concatenate([by_the_card(plain, messages(item)) for item in items])
    np.testing.assert_allclose(encode(random_model, items), expected, atol=1e-5)


def test_products_queries_and_raw_messages_mix(random_model, shop):
    items = [shop.queries[0], messages(shop.queries[0]), shop.products[0], messages(shop.products[0])]
    first, second, third, fourth = encode(random_model, items)
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_allclose(third, fourth, atol=1e-6)
    assert abs(first - third).max() > 1e-2


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_every_batch_size_and_order_gives_the_same(random_model, mixed_queries, batch_size):
    alone = np.concatenate([encode(random_model, query) for query in mixed_queries])
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 5):
        rows = encode(
            random_model, [mixed_queries[i] for i in order], settings=Settings(batch_size=batch_size)
        )
        np.testing.assert_allclose(rows, alone[list(order)], atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 7))
def test_any_mix_of_items_in_any_batches_gives_each_its_own_embedding(random_model, shop, picks, batch_size):
    items = [shop.queries[i] if i % 2 else shop.products[i] for i in picks]
    alone = {i: encode(random_model, shop.queries[i] if i % 2 else shop.products[i])[0] for i in set(picks)}
    np.testing.assert_allclose(
        encode(random_model, items, settings=Settings(batch_size=batch_size)),
        np.stack([alone[i] for i in picks]),
        atol=1e-5,
    )


def test_more_than_one_window_keeps_the_order(random_model, shop, monkeypatch):
    monkeypatch.setattr(embedding, "WINDOW", 2)
    expected = encode(random_model, shop.products[:20])
    np.testing.assert_allclose(
        encode(random_model, shop.products[:20], settings=Settings(batch_size=3)), expected, atol=1e-5
    )


def test_embeddings_are_normalised_float32_with_one_row_an_item(random_model, shop):
    rows = encode(random_model, shop.products[:5])
    assert rows.dtype == np.float32
    assert rows.shape == (5, random_model.dim)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert encode(random_model, []).shape == (0, random_model.dim)
    assert encode(random_model, shop.products[0]).shape == (1, random_model.dim)


def test_pooling_takes_the_last_real_token_on_either_padding_side():
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    left, right = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    normalize = torch.nn.functional.normalize
    torch.testing.assert_close(normalised(last_token(hidden, left)), normalize(hidden[:, -1], dim=-1))
    torch.testing.assert_close(
        normalised(last_token(hidden, right)), normalize(hidden[[0, 1], [1, 3]], dim=-1)
    )


def test_positions_of_pictures_need_mm_token_type_ids(random_model, shop):
    """Without them transformers falls back to 1-D positions in silence: the difference must be seen."""
    prompts = [prompt(random_model, shop.queries[0])]
    with torch.inference_mode():
        vision = vision_of(random_model, prompts)
        batch = tokenize(random_model, prompts, vision)
        whole = forward(random_model, prompts, vision, batch)
        batch.pop("mm_token_type_ids")
        without = forward(random_model, prompts, vision, batch)
    assert (whole - without).abs().max() > 1e-3


def test_our_tokens_are_the_processors(random_model, mixed_queries):
    from qwen_vl_utils.vision_process import fetch_image

    prompts = [prompt(random_model, query) for query in mixed_queries]
    ours = tokenize(random_model, prompts, vision_of(random_model, prompts))
    images = [[fetch_image({"image": picture}) for picture in prompt.pictures] for prompt in prompts]
    flat = [image for group in images for image in group]
    theirs = random_model.processor(
        text=[p.text for p in prompts], images=flat, padding=True, return_tensors="pt"
    )
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw"):
        assert torch.equal(ours[name], theirs[name]), name


def test_rope_deltas_of_one_call_do_not_leak_into_the_next(random_model, shop, mixed_queries):
    before = encode(random_model, shop.products[0])
    encode(random_model, mixed_queries[3])
    np.testing.assert_array_equal(encode(random_model, shop.products[0]), before)


def test_last_kept_layer_is_the_final_norm_output(random_model, shop):
    prompts = [prompt(random_model, shop.products[0])]
    with torch.inference_mode():
        vision = vision_of(random_model, prompts)
        batch = tokenize(random_model, prompts, vision)
        batch.pop("answer_lengths")
        pixels = random_model.pixels([(shop.products[0].image, "product")])
        output = random_model.network(
            **batch, pixel_values=next(iter(pixels.values()))[0], output_hidden_states=True, use_cache=False
        )
        torch.testing.assert_close(output.hidden_states[-1], forward(random_model, prompts, vision, batch))


def test_a_picture_shown_twice_is_looked_at_once(random_model, shop, monkeypatch):
    product = shop.products[0]
    query = Query("twice", "bag", (Condition("brand", product), Condition("color", product)))
    prompts = [prompt(random_model, item) for item in (product, query)]
    assert len(vision_of(random_model, prompts).features) == 1


def test_pictures_looked_at_in_lots_are_those_looked_at_together(random_model, shop, monkeypatch):
    prompts = [prompt(random_model, product) for product in shop.products[:7]]
    moves = moves_for(prompts)
    for moved in (None, moves):
        whole = vision_of(random_model, prompts, moving(random_model, moved))
        for most in (1, 80):  # one picture of 36 patches at a time, and two
            monkeypatch.setattr(vision_module, "CPU_PATCHES", most)
            found = vision_of(random_model, prompts, moving(random_model, moved))
            assert list(found.features) == list(whole.features) == list(found.grids)
            for k, features in whole.features.items():
                torch.testing.assert_close(found.features[k], features, atol=1e-5, rtol=1e-5)
        monkeypatch.undo()


def test_bfloat16_stays_close(random_folder, random_model, mixed_queries):
    half = load(random_folder, dtype="bfloat16")
    alone = np.concatenate([encode(half, query) for query in mixed_queries])
    assert (encode(half, mixed_queries) * alone).sum(1).min() > 0.999
    assert encode(half, mixed_queries[0]).dtype == np.float32


def test_running_out_of_memory_halves_the_batch_and_says_so(random_model, shop, monkeypatch, caplog):
    plain = embedding._embed

    def cramped(model, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no memory")
        return plain(model, batch)

    expected = encode(random_model, shop.products[:9])
    monkeypatch.setattr(embedding, "_embed", cramped)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(
            encode(random_model, shop.products[:9], settings=Settings(batch_size=8)), expected, atol=1e-5
        )
    assert "8 items; going on with 4" in caplog.text
    assert "going on with 2" in caplog.text


def test_running_out_of_memory_with_one_item_is_an_error(random_model, shop, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(embedding, "_embed", full)
    with pytest.raises(torch.OutOfMemoryError):
        encode(random_model, shop.products[:3], settings=Settings(batch_size=2))


@pytest.mark.parametrize("size", [(1, 1), (2000, 10), (3, 500), (57, 57)])
def test_odd_picture_sizes_work(random_model, size):
    product = Product("odd", "a title", noise(*size, seed=1))
    np.testing.assert_allclose(np.linalg.norm(encode(random_model, product)), 1, atol=1e-6)


@pytest.mark.parametrize(
    "product",
    [
        Product("strip", "too long a strip", Image.new("RGB", (8000, 10))),
        Product("gone", "no such file", "no/such/file.png"),
        Product("noise", "no picture at all", b"these are no pixels"),
        Product("remote", "on the web", "https://example.com/a.png"),
        Product("inject", "a title with <|image_pad|> in it", noise(56, 56, 0)),
        Product("nothing", "", None),
    ],
    ids=lambda product: product.id,
)
def test_an_item_that_cannot_be_used_is_named(random_model, shop, product):
    if product.id == "nothing":  # the card's words remain, and are text
        assert encode(random_model, product).shape == (1, random_model.dim)
        return
    with pytest.raises(ItemError, match=f"product {product.id}"):
        encode(random_model, [shop.products[0], product])


@pytest.mark.parametrize(
    "conversation",
    [
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}],
        [{"role": "user", "content": [{"type": "sound"}]}],
        "just words",
        42,
    ],
)
def test_bad_messages_are_named(random_model, shop, conversation):
    with pytest.raises(ItemError, match="item 1"):
        encode(random_model, [shop.products[0], conversation])


def test_long_and_empty_titles_and_many_conditions_work(random_model, shop):
    long = replace(shop.products[0], title="a very long title " * 556)
    query = shop.queries[0]
    many = replace(query, conditions=tuple(Condition("color", p) for p in shop.products[:20]))
    rows = encode(random_model, [long, replace(shop.products[1], title=""), many])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_text_beyond_what_the_model_reads_is_refused_not_cut(random_model, shop):
    with pytest.raises(ItemError, match="the model reads 32,768"):
        encode(random_model, replace(shop.products[0], title="word1 " * 40_000))
