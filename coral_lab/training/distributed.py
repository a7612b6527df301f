"""Several processes, one batch: each embeds its share of the rows and adds its share of the gradients.

Every process works out the loss of the whole batch and keeps the gradients of its own rows, so that the sum
over processes is the gradient of one process with the whole batch; nothing is scaled. Started by `torchrun`.
"""

import os
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed, nn


def start() -> None:
    """Join the processes that `torchrun` started, one device each; nothing to do for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


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


def total(numbers: Sequence[float], device: torch.device) -> list[float]:
    """Sum of each number over all processes."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return sums.tolist()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; one that a process has none of counts as zero."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def wait() -> None:
    """Until every process is here."""
    if world_size() > 1:
        distributed.barrier()
