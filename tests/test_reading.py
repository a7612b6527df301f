"""Reading only what is needed gives the states of reading all of it, and the same gradients."""

from dataclasses import replace

import pytest
import torch

from coral_lab.inputs import last, prompt, read, see, tokenize
from coral_lab.lessons import product_lesson, query_lesson
from coral_lab.models import add_lora, load
from coral_lab.reading import _shared, last_states, read_last
from tests.conftest import assert_same_gradients, read_all, states_and_gradients


def check(model, items, count, answers=None):
    expected, gradients = states_and_gradients(model, items, count, read_all, answers)
    found, ours = states_and_gradients(model, items, count, read_last, answers)
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
        vision = see(random_model, prompts)
        batch = tokenize(random_model, prompts, vision)
        expected = last(read(random_model, prompts, vision, batch), batch["attention_mask"])
        for chunk in (1, 3, 32):
            found = last_states(random_model, prompts, vision, chunk)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [
        ([[5, 6, 7, 8], [5, 6, 9, 8]], 1, 2),
        ([[5, 6, 7, 8], [0, 5, 6, 8]], 1, 2),  # padded on the left
        ([[5, 6, 7, 8], [0, 5, 6, 8]], 2, 1),
        ([[5, 6, 7, 8], [0, 5, 6, 8]], 9, 0),
        ([[5, 3, 7, 8], [5, 3, 7, 8]], 1, 1),  # 3 is a picture's token
        ([[5, 6, 7, 8]], 1, 3),
        ([[4, 6, 7, 8], [5, 6, 7, 8]], 1, 0),
    ],
)
def test_what_rows_share_ends_before_pictures_and_what_is_asked_for(rows, count, expected):
    ids = torch.tensor(rows)
    assert _shared(ids, (ids == 0).sum(-1, keepdim=True), 3, count) == expected
