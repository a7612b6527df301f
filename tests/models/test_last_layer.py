"""The last layer at the last places gives what the whole layer gives there, and the same gradients."""

import threading

import pytest
import torch

from coral_lab.models.forward import forward, tokenize
from coral_lab.models.inputs import prompt
from coral_lab.models.last_layer import only_last
from coral_lab.models.loading import load
from coral_lab.models.vision import vision_of
from coral_lab.training.lora import add_lora
from tests.conftest import assert_same_gradients, read_all, states_and_gradients


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("count", [1, 7, 1000])
@pytest.mark.parametrize("padded", [True, False])
def test_states_and_gradients_are_those_of_the_whole_layer(
    random_folder, shop, mixed_queries, attention, count, padded
):
    model = load(random_folder, attention=attention)
    items = mixed_queries if padded else shop.queries[:1] * 2
    expected, gradients = states_and_gradients(model, items, count, read_all)
    with only_last(model.network.model.language_model, count):
        found, ours = states_and_gradients(model, items, count, read_all)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert_same_gradients(ours, gradients)


def test_adapters_get_the_same_gradients(random_folder, mixed_queries):
    model = load(random_folder)
    add_lora(model, 2)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:  # zeros at the start, through which nothing would flow
                parameter.fill_(0.02)
    _, gradients = states_and_gradients(model, mixed_queries, 1, read_all)
    with only_last(model.network.model.language_model, 1):
        _, ours = states_and_gradients(model, mixed_queries, 1, read_all)
    assert_same_gradients(ours, gradients)
    assert any("layers.2" in name for name in gradients)


def test_other_threads_and_later_calls_get_all_states(random_model, mixed_queries):
    prompts = [prompt(random_model, query) for query in mixed_queries]

    @torch.no_grad()
    def whole():
        vision = vision_of(random_model, prompts)
        return forward(random_model, prompts, vision, tokenize(random_model, prompts, vision))

    expected, others = whole(), []
    with only_last(random_model.network.model.language_model, 2):
        thread = threading.Thread(target=lambda: others.append(whole()))
        thread.start()
        thread.join()
        assert (whole()[:, :-2] == 0).all()
    assert torch.equal(others[0], expected)
    assert torch.equal(whole(), expected)


def test_no_places_are_refused(random_model):
    with (
        pytest.raises(ValueError, match="count is 0; ask for at least the last place"),
        only_last(random_model.network.model.language_model, 0),
    ):
        pass
