"""What each part of the quick path is worth at three sizes: how many times as long a call takes without it.

Two products of a shop's size and six orders of a query of three conditions, on random weights of
benchmarks/encode.py; one product and two orders at the 3B's widths: 4 of 36 text and 4 of 32 vision layers,
for the whole takes minutes, and there the last layer is a ninth as much of it; 100 queries of MERIT-mini and
their products on coral-mini. Float32, one thread and processor seconds, which a busy neighbour changes
little; pictures are processed before. `cpu_attention` is for bfloat16 on processors that multiply it, and is
not among them. Writes benchmarks/quick_path.csv.

python benchmarks/quick_path.py          python benchmarks/quick_path.py 3B
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from encode import checkpoint, products
from encode_large import large, processor_seconds
from table import keep, ratios, row

from coral_lab import Condition, Product, Query, Settings, dataset, encode, load
from coral_lab.models import cpu_linear, embedding, prefixes, window_attention
from coral_lab.models.model import Model

NEVER = 10**9
Items = Sequence[Product | Query]


@contextmanager
def windows_one_by_one(model: Model) -> Iterator[None]:
    """transformers' own vision attention and projection of patches."""
    tower = model.network.model.visual
    tower.config._attn_implementation = "sdpa"
    with patch.dict(tower.patch_embed.__dict__):
        del tower.patch_embed.forward
        yield
    tower.config._attn_implementation = window_attention.NAME


def apart(own: Items) -> Items:
    """The same items, each with pictures of its own, which are looked at anew."""

    def product(shown: Product) -> Product:
        return replace(shown, image=copy(shown.image))

    def query(asked: Query) -> Query:
        conditions = tuple(replace(one, product=product(one.product)) for one in asked.conditions)
        return asked.edited(conditions=conditions)

    return [product(item) if isinstance(item, Product) else query(item) for item in own]


WITHOUT: dict[str, Callable[[Model], AbstractContextManager]] = {
    "cpu_linear": lambda model: patch.object(cpu_linear, "HERE", False),
    "window_attention": windows_one_by_one,
    "last_layer": lambda model: patch.object(prefixes, "only_last", lambda *_: nullcontext()),
    "prefixes": lambda model: patch.object(prefixes, "call_cost", lambda _: NEVER),
    "batches that weigh padding": lambda model: patch.object(embedding, "call_cost", lambda _: NEVER),
    "pictures once": lambda model: nullcontext(),
}


def mixed() -> Items:
    """Two products, and six orders of a query over three."""
    shown = products(3)
    query = Query("q", shown[0].class_name, tuple(map(Condition, ("color", "brand", "shape"), shown)))
    return [*shown[:2], *(query.reordered(order) for order in permutations(range(3)))]


def measured(size: str, model: Model, own: Items, runs: int) -> list[dict]:
    """Rows of one size; every embedding is the same without a part as with it."""
    others = apart(own)

    def call(some: Items) -> np.ndarray:
        return encode(model, some, settings=Settings(store="", progress=False))

    expected = call(own)  # the pictures are processed now
    whole: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in WITHOUT}
    for _ in range(runs):
        whole.append(processor_seconds(partial(call, own))[0])
        for name, without in WITHOUT.items():
            with without(model):
                some = others if name == "pictures once" else own
                taken, found = processor_seconds(partial(call, some))
            times[name].append(taken)
            assert abs(found - expected).max() < 1e-5, name
    rows = [row(f"{size}, without {name}", ratios(own, whole)) for name, own in times.items()]
    return [row(f"{size}: s", whole), *rows]


def mini() -> list[dict]:
    queries = dataset("mini").queries[:100]
    shown = {one.product.id: one.product for query in queries for one in query.conditions}
    return measured("coral-mini", load("mini"), [*shown.values(), *queries], 9)


def laptop() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        model = load(checkpoint(Path(folder)))
    return measured("124 M", model, mixed(), 3)


def widths_of_3b() -> list[dict]:
    return measured("3B", large(4, 4)[0], mixed()[1:4], 1)


SIZES = {"coral-mini": mini, "124M": laptop, "3B": widths_of_3b}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or SIZES:
        found = keep("quick_path", SIZES[wanted]())
    print(found.to_string(index=False))
