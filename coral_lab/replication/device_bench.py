"""What the checks of a device share: their figures, clocks and memory, and models with random weights."""

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from coral_lab.encoder import Settings, encode
from coral_lab.mini.architecture import untrained
from coral_lab.mini.merit_mini import catalogue
from coral_lab.mini.recipe import corpus
from coral_lab.mini.rehearsal_checkpoint import SHAPE
from coral_lab.models.loading import load_network
from coral_lab.models.model import Model
from coral_lab.query import Condition, Product, Query
from coral_lab.replication.cells import provenance

SIZES = ("3b", "small")
SIDE = 336
"""Pixels of a picture's side, which are 144 tokens."""

COSINE = 0.999
"""What one network's embeddings in bfloat16 have in common at least, however they are computed."""

_ROPE = {"rope_type": "default", "rope_theta": SHAPE["rope_theta"], "mrope_section": [16, 24, 24]}
LARGE: dict[str, Any] = {
    "text": {
        name: SHAPE[name]
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        )
    }
    | {"rope_parameters": _ROPE},
    "vision": {
        name: SHAPE["vision_config"][name]
        for name in (
            *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size"),
            "fullatt_block_indexes",
        )
    },
}
"""The 3B's shape, 3,754,622,976 parameters; small is coral-mini's."""


@dataclass(frozen=True)
class Figure:
    """One row of the table. A value of None says that the check was left out, and `why`.

    `below` and `at_least` are what is wanted of a number, if anything is.
    """

    check: str
    value: float | int | str | None
    unit: str = ""
    below: float | int | None = None
    at_least: float | int | None = None
    why: str = ""

    @property
    def wanted(self) -> str:
        if self.below is not None:
            return f"< {self.below:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "left out"
        good = not isinstance(self.value, float) or np.isfinite(self.value)
        if self.below is not None:
            good &= float(self.value) < self.below
        if self.at_least is not None:
            good &= float(self.value) >= self.at_least
        return "ok" if good else "failed"


@dataclass(frozen=True)
class Bench:
    """The device, the size of what is measured on it, and a folder for checkpoints, gone at the end."""

    device: torch.device
    size: str
    folder: Path

    @property
    def small(self) -> Path:
        """The folder of the checkpoint of coral-mini's shape, in float32."""
        return self.folder / "small"

    @property
    def main(self) -> Path:
        """That of the size that was asked for; the 3B's is in bfloat16."""
        return self.folder / self.size

    @property
    def is_large(self) -> bool:
        return self.size != "small"

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def name(self) -> str:
        """The device as its maker calls it; of a CPU the architecture and how many threads are used."""
        if self.is_cuda:
            return f"{self.device}, {torch.cuda.get_device_name(self.device)}"
        return f"{self.device}, {provenance()['machine']}"

    def load(self, folder: Path, dtype: str, attention: str | None = "sdpa", **options: Any) -> Model:
        """As `cl.load` with this device."""
        return load_network(folder, device=self.device, dtype=dtype, attention=attention, **options)


Check = Callable[[Bench], Iterator[Figure]]
"""A check gives its figures one by one; what it raises is a row, and ends it alone."""


def device_of(name: str | None) -> torch.device:
    """The device of a name, by default the best one here. Raises ValueError for one that is not here."""
    here = ["cpu"]
    if torch.backends.mps.is_available():
        here = ["mps", *here]
    if torch.cuda.is_available():
        here = [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), *here]
    wanted = f"cuda:{torch.cuda.current_device()}" if name == "cuda" == here[0][:4] else name or here[0]
    if wanted not in here:
        raise ValueError(f"device is {name!r}, which is not here; use {', '.join(here)}")
    return torch.device(wanted)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free(device: torch.device) -> None:
    """Give memory back that nothing holds any more, and count its peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "mps":
        torch.mps.empty_cache()


def timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call until the device has done its part, and what it returned."""
    synchronize(device)
    started = time.perf_counter()
    found = call()
    synchronize(device)
    return time.perf_counter() - started, found


def peak(device: torch.device) -> float | None:
    """Most GB of tensors since `free`; None where torch does not count them."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def held(device: torch.device) -> float | None:
    """GB of tensors now; None where torch does not count them."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e9
    return torch.mps.current_allocated_memory() / 1e9 if device.type == "mps" else None


def memory(check: str, value: float | None, why: str = "") -> Figure:
    return Figure(check, value, "GB", why=why if value is not None else "torch counts memory on GPUs only")


def room(device: torch.device) -> float | None:
    """Bytes that are free; None where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return None


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, products of float32 are of float32: no TF32, which has ten bits."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def said() -> Iterator[list[str]]:
    """What coral_lab's log says inside, in place of the terminal."""
    log, lines = logging.getLogger("coral_lab"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    before = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.propagate = before


def built(device: torch.device, size: str) -> Model:
    """A model with random weights, made where it is to be: the 3B in bfloat16, the small one in float32. It
    encodes by transformers' public names alone.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if size == "3b" else torch.float32)
    large = LARGE if size == "3b" else {}
    try:
        with torch.device(device):
            model = untrained(corpus(catalogue("mini", "test"), limit=200), **large)
    finally:
        torch.set_default_dtype(before)
    if size == "small":
        with torch.no_grad():  # scaled up, so that different inputs give clearly different embeddings
            for parameter in model.network.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
    model.processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 12_845_056}
    return replace(model, quick=False)


def products(count: int) -> list[Product]:
    """So many products of MERIT-mini, with pictures of coarse coloured noise, SIDE pixels a side."""
    return [replace(p, image=_noise(i)) for i, p in enumerate(catalogue("mini", "test").products[:count])]


def _noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def with_queries(shown: Sequence[Product], count: int) -> list[Product | Query]:
    """The products, and so many queries that show two of them each; the first of these is the answer."""
    return [*shown, *(query_over(shown, i) for i in range(count))]


def query_over(shown: Sequence[Product], i: int) -> Query:
    own, other = shown[i % len(shown)], shown[(5 * i + 1) % len(shown)]
    asked = (Condition("color", own), Condition("brand", other))
    return Query(f"q{i}", own.class_name, asked, positives=(own.id,))


def embeddings(model: Model, items: Sequence, batch_size: int = 32) -> Float[np.ndarray, "item dim"]:
    """`encode`, with no picture kept from before and nothing kept after."""
    model.__dict__.pop("pixels", None)
    settings = Settings(batch_size=batch_size, store="", progress=False)
    return encode(model, list(items), settings=settings)


def least_cosine(a: Float[np.ndarray, "item dim"], b: Float[np.ndarray, "item dim"]) -> float:
    return float((a * b).sum(1).min())


@contextmanager
def counted(network: torch.nn.Module) -> Iterator[list[int]]:
    """Floating-point operations of each call of a linear layer inside."""
    found: list[int] = []

    def count(layer: Any, args: tuple, output: Any) -> None:
        found.append(2 * args[0].numel() * layer.out_features)

    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
