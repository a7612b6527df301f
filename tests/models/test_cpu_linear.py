"""Linear layers by oneDNN are linear layers."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from coral_lab import Settings, encode, load
from coral_lab.models import cpu_linear
from coral_lab.models.cpu_linear import FEWEST, Linear, linear
from coral_lab.training.lora import add_lora

needs_it = pytest.mark.skipif(not cpu_linear.HERE, reason="no oneDNN on this machine")


def tensors(shape, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(size, generator=generator, requires_grad=True) for size in (shape, (12, shape[-1]), (12,))
    ]
    return made if bias else [*made[:2], None]


def gradients(function, tensors):
    output = function(*tensors)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output, torch.autograd.grad((output * weights).sum(), [t for t in tensors if t is not None])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(FEWEST, 20), (3, FEWEST, 20), (2, 5, 40, 20), (1, 20), (FEWEST - 1, 20), (0, 20)]
)
def test_sums_and_gradients_are_those_of_torch(shape, bias):
    own = tensors(shape, bias)
    found, expected = gradients(linear, own), gradients(functional.linear, own)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("side", "padding"), [((2, 3, 3), 0), ((2, 6, 3), 0), ((4, 3, 3), 0), ((2, 3, 3), (0, 1, 1))]
)
def test_patches_are_convolved_as_by_torch(bias, side, padding):
    """By a product where an input is one patch, and by torch where it is several or has a border."""
    torch.manual_seed(0)
    plain = nn.Conv3d(5, 7, (2, 3, 3), (2, 3, 3), padding, bias=bias)
    ours = copy.deepcopy(plain)
    cpu_linear.use(nn.Sequential(ours))
    assert type(ours) is cpu_linear.Patches
    own = torch.randn(FEWEST + 3, 5, *side, requires_grad=True)
    inputs = [[own, *module.parameters()] for module in (ours, plain)]
    found, expected = (
        gradients(lambda x, *_, m=module: m(x), given)
        for module, given in zip((ours, plain), inputs, strict=True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert ours(own[:0]).shape == plain(own[:0]).shape


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(frozen):
    own = tensors((FEWEST, 20))
    own[frozen].requires_grad_(False)
    linear(*own).sum().backward()
    assert [t.grad is None for t in own] == [i == frozen for i in range(3)]


@needs_it
@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_that_a_cpu_cannot_multiply_goes_by_way_of_float32_and_is_rounded_once(bias, monkeypatch):
    own = [None if t is None else t.detach().bfloat16() for t in tensors((FEWEST, 20), bias)]
    exact = functional.linear(*(None if t is None else t.double() for t in own))
    for native, calls in ((True, 0), (False, 1)):
        made = []
        monkeypatch.setattr(cpu_linear, "computes_bfloat16", lambda native=native: native)
        monkeypatch.setattr(
            cpu_linear, "_product", lambda *args, made=made: made.append(1) or functional.linear(*args)
        )
        with torch.inference_mode():
            found = linear(*own)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-8)
        assert len(made) == calls
    linear(*own)  # something may learn from it
    assert len(made) == 1


@needs_it
def test_it_is_used_for_many_rows_of_float32_only(monkeypatch):
    calls = []
    product = cpu_linear._product
    monkeypatch.setattr(cpu_linear, "_product", lambda *args: calls.append(args) or product(*args))
    rows, weight, _ = tensors((FEWEST, 20))
    linear(rows, weight)
    assert len(calls) == 1
    linear(rows[1:], weight)
    linear(rows.bfloat16(), weight.bfloat16())
    linear(rows.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(rows, weight).dtype == torch.bfloat16
    assert len(calls) == 1


def test_a_network_keeps_its_names_parameters_and_kinds():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2)), nn.LayerNorm(2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rows = torch.randn(FEWEST, 4)
    expected = network(rows)
    cpu_linear.use(network)
    assert all(isinstance(layer, Linear) for layer in (network[0], network[1][0]))
    torch.testing.assert_close(network(rows), expected)
    for other in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(dict(other.state_dict()), before)


def test_a_model_embeds_as_with_torchs_own_layers(random_model, mixed_queries, monkeypatch):
    found = encode(random_model, mixed_queries, settings=Settings(store=""))
    monkeypatch.setattr(cpu_linear, "HERE", False)
    assert abs(encode(random_model, mixed_queries, settings=Settings(store="")) - found).max() < 1e-5


def test_adapters_go_around_it():
    model = load("mini-base", device="cpu")
    add_lora(model, 2)
    layer = model.network.model.language_model.layers[0].mlp.up_proj
    assert isinstance(layer.base_layer, Linear)
    layer(torch.randn(FEWEST, 128)).sum().backward()
    assert layer.base_layer.weight.grad is None
    assert layer.lora_A["default"].weight.grad is not None
