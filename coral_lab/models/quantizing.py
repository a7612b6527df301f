"""Linear layers whose weights are kept in eight bits: integers, and for each output one scale, by torchao.

A weight is at most half a step from what it was, and a step is the output's largest weight / 127.5. Sums
stay in the model's dtype. Embeddings, norms, biases, the patches' projection and the LM head, which is tied
to the embeddings, stay as they are.

This saves memory, not time (benchmarks/quantize.py). torchao's dynamic kind, which rounds what comes in as
well, is not offered. CPUs without VNNI take 20 times as long for its products of integers, and CUDA has
none for 3,420 outputs, the width of CORAL's vision layers: torchao works those out on the CPU.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from coral_lab.errors import require

KINDS = ("int8",)

BLOCK = 2**21
"""Weights that are made floats of at a time: 8 MB, so that the allocator hands out the same memory again.
All at once they would be 90 MB in CORAL's wide layers, and twice the time for 150 tokens.
"""


def check(kind: str | None, device: torch.device) -> None:
    """Raises ValueError for a kind or a device that is none, MissingExtraError without torchao."""
    if kind is None:
        return
    if kind not in KINDS:
        raise ValueError(f"quantize is {kind!r}; use 'int8', or leave it out")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"quantize is {kind!r} and device {str(device)!r}, where torchao has no int8; use cuda or cpu"
        )
    require("torchao", "quantize")


def config(kind: str | None) -> Any:
    """What `from_pretrained` takes for a kind: it quantises each weight as it is read."""
    if kind is None:
        return None
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))


def kind_of(network: nn.Module) -> str | None:
    """ "int8" for a network with quantised weights, else None."""
    return "int8" if any(_is_quantized(weight) for weight in network.parameters()) else None


def check_whole(network: nn.Module, name: str, done: str) -> None:
    """Raises ValueError for a quantised network; `done` is what cannot be done with it, such as "saved"."""
    if kind := kind_of(network):
        raise ValueError(f"{name}: its weights are {kind} and cannot be {done}; load it without quantize")


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name; of a quantised weight the integers and the scales."""
    found: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if _is_quantized(tensor):
            found |= {f"{name}.{part}": getattr(tensor, part) for part in ("qdata", "scale")}
        else:
            found[name] = tensor
    return found


def _is_quantized(tensor: Any) -> bool:
    return hasattr(tensor, "qdata")  # torchao's tensors have it: without them it is not imported


def use(network: nn.Module) -> None:
    """Make every quantised layer of the network one of these; weights and names stay as they are."""
    for module in network.modules():
        if type(module) is nn.Linear and _is_quantized(module.weight):
            module.__class__ = Int8Linear


class Int8Linear(nn.Linear):
    """A quantised nn.Linear, on a CPU block by block; elsewhere, and for gradients, by torchao's product."""

    def forward(self, input: Float[Tensor, "*row in"]) -> Float[Tensor, "*row out"]:
        if input.device.type != "cpu" or input.requires_grad:
            return super().forward(input)
        weight: Any = self.weight
        return _by_blocks(input, weight.qdata, weight.scale.flatten(), self.bias)


def _by_blocks(input: Tensor, numbers: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The products with the integers, scaled after: as exact as with the scaled weights, and fewer sums."""
    from coral_lab.models.cpu_linear import linear

    output = input.new_empty(*input.shape[:-1], len(numbers))
    step = max(1, BLOCK // numbers.shape[1])
    for at in range(0, len(numbers), step):
        some = slice(at, at + step)
        torch.mul(linear(input, numbers[some].to(input.dtype)), scale[some], out=output[..., some])
    return output if bias is None else output.add_(bias)
