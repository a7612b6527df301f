"""What is asked of a device about memory: what batches take, and going on with halves when it is out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from coral_lab.models.model import Model
from coral_lab.replication.device_bench import (
    COSINE,
    Bench,
    Figure,
    embeddings,
    free,
    least_cosine,
    memory,
    peak,
    products,
    said,
    timed,
)

BATCH_SIZES = (1, 8, 32, 128)

Limit = Callable[[], AbstractContextManager[None]]
"""Inside, memory is short."""


def memory_by_batch(bench: Bench) -> Iterator[Figure]:
    """The same items at several batch sizes: peak memory, and the same embeddings."""
    own, first = products(128 if bench.is_cuda else 3), None
    model = bench.load(bench.main, "bfloat16")
    for size in BATCH_SIZES:
        free(bench.device)
        seconds, found = timed(bench.device, partial(embeddings, model, own, size))
        why = f"{len(own)} products in {seconds:.3g} s; a batch has 16,384 tokens at most"
        yield memory(f"batch of {size}: peak", peak(bench.device), why)
        first = found if first is None else first
        if size > 1:
            yield Figure(
                f"batch of {size}: cosine with one by one", least_cosine(found, first), at_least=COSINE
            )


def halving(bench: Bench) -> Iterator[Figure]:
    """Out of memory, `encode` goes on with half as many, and the embeddings are the same."""
    large = bench.is_large and bench.is_cuda
    own = products(96 if large else 4)
    model = bench.load(bench.main if large else bench.small, "bfloat16" if large else "float32")
    expected = found = embeddings(model, own, 128)
    halved, why = 0, ""
    for limit, how in _limits(bench, model, own) if large else _refusals(model):
        free(bench.device)
        with said() as lines, limit():
            found = embeddings(model, own, 128)
        halved, why = sum(line.startswith("out of GPU memory") for line in lines), how
        if halved:
            break
    yield Figure("out of memory: batches halved", halved, "times", at_least=1, why=why)
    if large:
        yield Figure("out of memory: cosine", least_cosine(found, expected), at_least=COSINE)
    else:
        yield Figure("out of memory: apart", float(np.abs(found - expected).max()), below=1e-4)


def _limits(bench: Bench, model: Model, own: Sequence) -> Iterator[tuple[Limit, str]]:
    """Less and less memory, between what one item needs and what the whole batch does."""
    needs = []
    for some, size in ((own[:4], 1), (own, 128)):
        free(bench.device)
        embeddings(model, some, size)
        needs.append(torch.cuda.max_memory_reserved(bench.device))  # a limit counts what is reserved
    least, most = needs
    whole = torch.cuda.get_device_properties(bench.device).total_memory
    for share in (0.6, 0.4, 0.25):
        allowed = least + share * (most - least)
        how = f"limit of {allowed / 1e9:.2f} GB; one needs {least / 1e9:.2f}, all {most / 1e9:.2f}"
        yield partial(_at_most, bench, allowed / whole), how


@contextmanager
def _at_most(bench: Bench, share: float) -> Iterator[None]:
    """Inside, this process has so much of the device's memory."""
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), bench.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


def _refusals(model: Model) -> Iterator[tuple[Limit, str]]:
    """At a size that no limit meets, the text model itself says that it cannot read more than two rows."""
    yield partial(_refusing, model), "no real limit: an error is raised for more than two rows"


@contextmanager
def _refusing(model: Model) -> Iterator[None]:
    def refuse(layer: Any, args: tuple, options: dict) -> None:
        if len(options["inputs_embeds"]) > 2:
            raise torch.OutOfMemoryError("more than two rows")

    text: Any = model.network.model.language_model
    hook = text.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
