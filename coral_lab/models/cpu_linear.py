"""Float32 linear layers on a CPU, by oneDNN's matrix products.

PyTorch takes MKL's for float32 (torch 2.14), which leave AMD's CPUs half idle. Both sum in float32; the last
bits differ.
"""

import os
import platform

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

FEWEST = 64
"""Rows from which it pays: oneDNN puts the weight in an order of its own first."""

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's own, and that of PyTorch's calls to it."""

HERE = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


def keep_few_shapes() -> None:
    """Let oneDNN keep what it compiled for the last 16 shapes, not the last 1,024, which take 400 MB.

    It heeds this until its first product only. What the user has set stays.
    """
    for cache in CACHES:
        os.environ.setdefault(cache, "16")


def use(network: nn.Module) -> None:
    """Make every linear layer of the network one of these; parameters and names stay as they are."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, input: Float[Tensor, "*row in"]) -> Float[Tensor, "*row out"]:
        return linear(input, self.weight, self.bias)


def linear(
    input: Float[Tensor, "*row in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*row out"]:
    """torch's own, faster where all is float32 on an x86 CPU and has enough rows; first derivatives only."""
    plain = input.dtype == weight.dtype == torch.float32 and input.device.type == "cpu"
    few = input.numel() < FEWEST * input.shape[-1]
    if not HERE or not plain or few or torch.is_autocast_enabled("cpu"):
        return functional.linear(input, weight, bias)
    return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context, input, weight, bias):
        context.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        input, weight = context.saved_tensors
        of_input, of_weight, of_bias = context.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if of_input else None,
            _product(rows.t(), input.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
