"""Several processes, one batch: each embeds its share of the rows and adds its share of the gradients.

Every process works out the loss of the whole batch and keeps the gradients of its own rows, so that the sum
over processes is the gradient of one process with the whole batch; nothing is scaled. They are joined, and
sharded, by accelerate, whatever started them: `torchrun`, `accelerate launch` or `notebook_launcher`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from coral_lab.errors import ProcessError, require

LAYERS = ("DecoderLayer", "VisionBlock", "Decoder")
"""Ends of the names of modules whose parameters are gathered when they are entered and let go after."""


def start(device: str | torch.device | None = None) -> None:
    """Join the processes that were started together, one device each, before the model is loaded; nothing
    to do for a single process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    on_cpu = not torch.cuda.is_available() if device is None else torch.device(device).type == "cpu"
    require("accelerate", "train").PartialState(cpu=on_cpu)


def end() -> None:
    """Leave the others; nothing to do for a single process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def one_error() -> Iterator[None]:
    """Raises ProcessError where this process finds in the middle of a sum that another one ended: that one's
    error says why.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or "gloo" in str(error)
        if world_size() == 1 or not lost:
            raise
        way = "its own error says why; the same command goes on from the last state"
        raise ProcessError(f"another of the {world_size()} processes ended; {way}") from error


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(rows: int) -> range:
    """This process's rows. Raises ValueError if they cannot be shared equally."""
    if rows % world_size():
        raise ValueError(f"a batch of {rows} for {world_size()} processes; choose a multiple")
    size = rows // world_size()
    return range(rank() * size, (rank() + 1) * size)


def gather(own: Tensor) -> Tensor:
    """All processes' rows in order; gradients flow to this process's own rows only."""
    if world_size() == 1:
        return own
    rows = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(rows, own.detach().contiguous())
    rows[rank()] = own
    return torch.cat(rows)


def gather_objects(own: Any) -> list[Any]:
    """What each process has, in order, on all of them."""
    found = [own]
    if world_size() > 1:
        found *= world_size()
        distributed.all_gather_object(found, own)
    return found


def total(numbers: Sequence[float], device: torch.device) -> list[float]:
    """Sum of each number over all processes."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return sums.tolist()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; one that a process has none of counts as zero.

    Those of sharded parameters were summed on the way.
    """
    if world_size() == 1:
        return
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def wait() -> None:
    """Until every process is here."""
    if world_size() > 1:
        distributed.barrier()


def shard(module: nn.Module, bfloat16: bool = False) -> None:
    """Let each process keep a part of every parameter, of its gradient and of what the optimizer keeps
    (FSDP2), in place; with `bfloat16` what is gathered is in it, and gradients are summed in float32.

    Raises ValueError for a single process.
    """
    if world_size() == 1:
        raise ValueError("there is one process, and nothing to shard over; start several, see torchrun")
    accelerate = require("accelerate", "train")
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # What comes in stays what it is: FSDP2 would make copies of batches, and pictures go by their identity.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    names = {type(part).__name__ for part in module.modules() if type(part).__name__.endswith(LAYERS)}
    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted(names),
        mixed_precision_policy=policy if bfloat16 else None,
        cpu_ram_efficient_loading=False,
    )
    on_cpu = next(module.parameters()).device.type == "cpu"
    accelerator = accelerate.Accelerator(cpu=on_cpu, fsdp_plugin=None if on_cpu else plugin)
    # Accelerator takes the plugin on GPUs only; the function behind it does on CPUs as well.
    accelerator.state.fsdp_plugin = plugin
    fsdp2_prepare_model(accelerator, module)


def whole(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict on the CPU, sharded parameters put together, on the first process; empty on the
    others. What is one parameter under two names stays one tensor.
    """
    state = module.state_dict()  # first: it lets go of what FSDP2 put together
    parameters = dict(module.named_parameters(remove_duplicate=False))
    made: dict[int, Tensor] = {}
    found = {}
    for name, tensor in state.items():
        own = parameters.get(name, tensor)
        if id(own) not in made:
            full = own.full_tensor() if isinstance(own, DTensor) else own  # all take part
            made[id(own)] = full.detach().cpu() if rank() == 0 else full.new_empty(0)
        if rank() == 0:
            found[name] = made[id(own)]
    return found
