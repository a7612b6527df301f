"""Linear layers on a CPU, by oneDNN's matrix products in float32.

PyTorch takes MKL's for float32 (torch 2.14), which leave AMD's CPUs with AVX-512 half idle. On one with AVX2
alone it pays for the 3B, a call takes a seventh longer without it, and smaller models are as quick by MKL's
(benchmarks/quick_path.py). Both sum in float32; the last bits differ. CPUs without instructions for bfloat16
get its products by way of float32 too, rounded once at the end as those instructions do.
"""

import platform

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from coral_lab.models.loading import computes_bfloat16

FEWEST = 64
"""Rows from which it pays: oneDNN puts the weight in an order of its own first."""

HERE = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


def use(network: nn.Module) -> None:
    """Make every linear layer of the network one of these; parameters and names stay as they are."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        if type(module) is nn.Conv3d:
            module.__class__ = Patches


class Patches(nn.Conv3d):
    """nn.Conv3d by `linear` where each input is one patch, as large as the kernel: a matrix product then, in
    a sixth of the time (forwards and back, 36 patches of 14 x 14 px).
    """

    def forward(self, input: Float[Tensor, "patch channel *side"]) -> Float[Tensor, "patch out *one"]:
        if input.shape[1:] != self.weight.shape[1:] or any(self.padding):
            return super().forward(input)
        found = linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return found.view(*found.shape, *(1 for _ in self.kernel_size))


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, input: Float[Tensor, "*row in"]) -> Float[Tensor, "*row out"]:
        return linear(input, self.weight, self.bias)


def linear(
    input: Float[Tensor, "*row in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*row out"]:
    """torch's own, faster where an x86 CPU has enough rows of float32, or of bfloat16 that it cannot
    multiply itself and that nothing learns from; first derivatives only.
    """
    few = input.numel() < FEWEST * input.shape[-1]
    if not HERE or few or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return functional.linear(input, weight, bias)
    if input.dtype == weight.dtype == torch.float32:
        return _Linear.apply(input, weight, bias)
    if (
        input.dtype == weight.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and not computes_bfloat16()
    ):
        return _product(input.float(), weight.float(), None if bias is None else bias.float()).bfloat16()
    return functional.linear(input, weight, bias)


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
