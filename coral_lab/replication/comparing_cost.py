"""What a model costs: seconds, dimensions, memory."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from coral_lab.encoder import Settings, encode_all
from coral_lab.models import quantizing
from coral_lab.models.model import Model
from coral_lab.models.protocol import Embedder
from coral_lab.prompts import Format
from coral_lab.query import Dataset, Product, Query
from coral_lab.store.external import Vectors

TIMED = 64
"""Products and queries that are timed, the first ones."""

RUNS, PATIENCE = 2, 30.0
"""They are encoded so often, and the quickest counts: first calls choose kernels, start threads, and draw or
read pictures for whoever comes next. After so many seconds, which such things do not take, once is enough.
"""


@dataclass(frozen=True)
class Cost:
    """What a model costs on this machine.

    The first TIMED products and queries are encoded apart, with no store and no picture processed before, so
    that what was kept is never taken for fast; loading does not count. `products` and `queries` are how many
    were timed, `product_seconds` and `query_seconds` how long these took: none of vectors that are only
    looked up. `weight_bytes` and `parameters` are of a model with a network; `peak_bytes` is the most that
    torch had on a CUDA device, and None elsewhere, where nothing is measured.
    """

    dim: int
    products: int = 0
    product_seconds: float = 0.0
    queries: int = 0
    query_seconds: float = 0.0
    parameters: int | None = None
    weight_bytes: int | None = None
    peak_bytes: int | None = None
    dtype: str = ""
    device: str = ""

    @property
    def embedding_bytes(self) -> int:
        """Of one embedding in float32, as pools and stores hold it."""
        return 4 * self.dim

    def row(self) -> dict[str, Any]:
        """In a table's columns: bytes, and milliseconds an item."""
        return {
            "dim": self.dim,
            "bytes an embedding": self.embedding_bytes,
            "ms a product": 1000 * self.product_seconds / self.products if self.products else None,
            "ms a query": 1000 * self.query_seconds / self.queries if self.queries else None,
            "parameters": self.parameters,
            "weight bytes": self.weight_bytes,
            "peak bytes": self.peak_bytes,
            "dtype": self.dtype,
            "device": self.device,
        }


def cost_of(model: Embedder, dataset: Dataset, format: str | Format, settings: Settings) -> Cost:
    """Time a model on the first items of a dataset. An item that it cannot use is not timed."""
    quiet = replace(settings, store="", progress=False, on_error="skip")
    parts = (dataset.products[:TIMED], dataset.queries[:TIMED])
    timed = {} if isinstance(model, Vectors) else _timed(model, *parts, format, quiet)
    parameters, weights = _size(model)
    return Cost(
        model.dim,
        **timed,
        parameters=parameters,
        weight_bytes=weights,
        dtype=getattr(model, "quantized", None) or str(getattr(model, "dtype", "")).removeprefix("torch."),
        device=str(getattr(model, "device", "") or ""),
    )


def _timed(
    model: Embedder,
    products: Sequence[Product],
    queries: Sequence[Query],
    format: str | Format,
    settings: Settings,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for items, many, one in ((products, "products", "product"), (queries, "queries", "query")):
        runs = [_seconds(model, items, format, settings)]
        while len(runs) < RUNS and runs[-1][1] < PATIENCE:
            runs.append(_seconds(model, items, format, settings))
        found |= {many: runs[0][0], f"{one}_seconds": min(seconds for _, seconds in runs)}
    return found


def forget_peak(model: Embedder) -> None:
    """Begin to measure the most memory that a CUDA device gives."""
    if device := _cuda(model):
        torch.cuda.reset_peak_memory_stats(device)


def peak(model: Embedder) -> int | None:
    """Bytes since `forget_peak`; None elsewhere than on a CUDA device."""
    device = _cuda(model)
    return torch.cuda.max_memory_allocated(device) if device else None


def _cuda(model: Embedder) -> Any:
    device = getattr(model, "device", None)
    return device if getattr(device, "type", "") == "cuda" else None


def _seconds(
    model: Embedder, items: Sequence[Product | Query], format: str | Format, settings: Settings
) -> tuple[int, float]:
    """How many items could be encoded, and in how many seconds."""
    alone, started = _unseeing(model), time.perf_counter()
    found = encode_all(alone, items, format, settings)
    return len(items) - len(found.skipped), time.perf_counter() - started


def _unseeing(model: Embedder) -> Embedder:
    """The same network with no picture processed yet. What another kind of model keeps is its own affair."""
    return replace(model) if isinstance(model, Model) else model


def _size(model: Embedder) -> tuple[int | None, int | None]:
    """Parameters, and bytes of these with all buffers; None for a model without a network."""
    network = getattr(model, "network", None)
    if not isinstance(network, torch.nn.Module):
        return None, None
    held = {tensor.data_ptr(): tensor.nbytes for tensor in quantizing.tensors(network).values()}
    return sum(own.numel() for own in network.parameters()), sum(held.values())
