"""Reading only what is needed gives the states of reading all of it, and the same gradients."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab import Condition, Query
from coral_lab.mini.lessons import product_lesson, query_lesson
from coral_lab.models import prefixes
from coral_lab.models.forward import forward, last_token, tokenize
from coral_lab.models.inputs import prompt
from coral_lab.models.loading import load
from coral_lab.models.prefixes import forward_last, last_states
from coral_lab.models.vision import vision_of
from coral_lab.training.lora import add_lora
from tests.conftest import assert_same_gradients, noise, read_all, states_and_gradients


def check(model, items, count, answers=None):
    expected, gradients = states_and_gradients(model, items, count, read_all, answers)
    found, ours = states_and_gradients(model, items, count, forward_last, answers)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert_same_gradients(ours, gradients)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_states_and_gradients_are_those_of_reading_all(random_folder, shop, mixed_queries, attention, count):
    model = load(random_folder, attention=attention)
    check(model, mixed_queries, count)  # rows of many lengths, with 0 to 4 pictures
    check(model, shop.products[:5], count)  # that share most of their tokens
    check(model, shop.queries[:1] * 2, count)  # or all of them
    check(model, shop.queries[:1], count)
    check(model, [replace(product, image=None) for product in shop.products[:3]], count)


def test_answers_follow_what_is_shared(random_model, shop):
    lessons = [product_lesson(shop.products[0]), query_lesson(shop.queries[0])]
    lessons += [(lessons[0][0], "nothing at all"), (lessons[0][0], "nothing")]
    items, answers = zip(*lessons, strict=True)
    check(random_model, items, 12, list(answers))
    check(random_model, items[2:], 5, list(answers[2:]))


def test_adapters_get_the_same_gradients(random_folder, mixed_queries):
    model = load(random_folder)
    add_lora(model, 2)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:  # zeros at the start, through which nothing would flow
                parameter.fill_(0.02)
    check(model, mixed_queries, 1)


def test_h_eos_is_that_of_encoding(random_model, shop):
    prompts = [prompt(random_model, item) for item in (*shop.queries[:5], *shop.products[:3])]
    with torch.no_grad():
        vision = vision_of(random_model, prompts)
        batch = tokenize(random_model, prompts, vision)
        expected = last_token(forward(random_model, prompts, vision, batch), batch["attention_mask"])
        for chunk in (1, 3, 32):
            found = last_states(random_model, prompts, vision, chunk)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.fixture
def tokens_read(random_model):
    """How many tokens the text model reads, one number a call."""
    forward = []
    language_model = random_model.network.model.language_model
    hook = language_model.register_forward_pre_hook(
        lambda _, args, options: forward.append(options["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    yield forward
    hook.remove()


@pytest.mark.parametrize("count", [1, 4])
def test_what_orders_of_a_query_begin_with_is_read_once(random_model, shop, tokens_read, monkeypatch, count):
    shown = [replace(shop.products[i], image=noise(196, 196, seed=i)) for i in range(3)]
    query = Query("q", "bag", tuple(map(Condition, ("color", "brand", "shape"), shown)))
    orders = [query.reordered(order) for order in permutations(range(3))]
    orders.append(orders[0].edited(text=" in a box"))  # differs at its end only
    orders += orders[2:3] * 2 + [query.edited(conditions=query.conditions[:1] * 3)]
    monkeypatch.setattr(prefixes, "call_cost", lambda model: 16)
    check(random_model, orders, count)
    whole, *parts = tokens_read
    # Each first reference is read once for its two orders, and the instruction's first words once for all.
    assert sum(parts) < 0.75 * whole
    tokens_read.clear()
    monkeypatch.setattr(prefixes, "call_cost", lambda model: 10**6)
    check(random_model, orders, count)
    assert tokens_read == [whole, whole]


PARTS = st.sampled_from(["a red bag ", "of ", "leather with a strap ", 1, 2])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=5), min_size=1, max_size=6), st.integers(1, 3))
def test_whatever_rows_share_their_states_are_their_own(random_model, rows, count):
    pictures = {n: noise(56 * n, 56, seed=n) for n in (1, 2)}
    items = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "image", "image": pictures[part]}
                    for part in row
                ],
            }
        ]
        for row in rows
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "call_cost", lambda model: 1)
        check(random_model, items, count)
