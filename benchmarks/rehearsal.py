"""What MERIT and CORAL take at their full sizes on this machine: reading 51,177 products and 10,000 queries,
loading a checkpoint of the 3B's shape, and encoding three products and a query with pictures of 336 pixels.

FLOP/s are of the linear layers' products that run, two for each weight and token. Weights are random.

python benchmarks/rehearsal.py FOLDER [read] [load] [encode]       FOLDER is what `rehearse` wrote
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from table import keep, megabytes, row

import coral_lab as cl
from coral_lab.models.loading import Model
from coral_lab.query import Product

SIDE = 336  # pixels
WANTED = {"read: s": "< 20", "read: peak memory, GB": "< 1.5"}


def read(folder: Path) -> dict[str, list[float]]:
    taken, shop = seconds(lambda: cl.dataset(folder / "merit"))
    assert (len(shop.products), len(shop.queries)) == (51_177, 10_000)
    return {"read: s": [taken], "read: peak memory, GB": [peak()]}


def load(folder: Path) -> dict[str, list[float]]:
    taken, model = seconds(lambda: cl.load(folder / "coral", device="cpu"))
    name = f"load in {dtype_of(model)}"
    own = sum(parameter.nbytes for parameter in model.network.parameters()) / 1e9
    return {
        f"{name}: s": [taken],
        f"{name}: peak memory, GB": [peak()],
        f"{name}: its weights, GB": [own],
    }


def encode(folder: Path) -> dict[str, list[float]]:
    """Encodes once; before it a text, for what is only done the first time."""
    model = cl.load(folder / "coral", device="cpu")
    shop = cl.dataset("mini")
    shown = {product.id: larger(product) for query in shop.queries[:1] for product in query.references}
    query = replace(
        shop.queries[0],
        conditions=tuple(
            replace(condition, product=shown[condition.product.id])
            for condition in shop.queries[0].conditions
        ),
    )
    items = [*map(larger, shop.products[:3]), query]
    settings = cl.Settings(store="", progress=False)
    cl.encode(model, [Product("0", "a chair")], settings=settings)
    counted = count_products(model)
    taken, found = seconds(lambda: cl.encode(model, items, settings=settings))
    assert found.shape == (4, 2048)
    name = f"encode in {dtype_of(model)}"
    return {
        f"{name}: s an item": [taken / len(items)],
        f"{name}: peak memory, GB": [peak()],
        f"{name}: TFLOP an item": [sum(counted) / len(items) / 1e12],
        f"{name}: GFLOP/s": [sum(counted) / taken / 1e9],
        "largest cosine between two of the items": [
            float((found @ found.T - torch.eye(len(found)).numpy()).max())
        ],
    }


def larger(product: Product) -> Product:
    return replace(product, image=product.picture.resize((SIDE, SIDE)))


def count_products(model: Model) -> list[int]:
    """A list that every linear layer adds its products to, when it runs."""
    counted: list[int] = []
    for module in model.network.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda m, args, _: counted.append(2 * args[0].numel() * len(m.weight))
            )
    return counted


def dtype_of(model: Model) -> str:
    return str(model.dtype).removeprefix("torch.")


def seconds(call) -> tuple:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def peak() -> float:
    """Most memory of this process so far, GB."""
    return megabytes("VmHWM") * 2**20 / 1e9


MEASURED = {"read": (read, 3), "load": (load, 2), "encode": (encode, 1)}


def measured(folder: str, name: str) -> list[dict]:
    """Rows of one measurement, each run in a process of its own, so that its memory is its own."""
    values: dict[str, list[float]] = {}
    for _ in range(MEASURED[name][1]):
        command = [sys.executable, __file__, folder, "here", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        for what, own in json.loads(done.stdout.splitlines()[-1]).items():
            values.setdefault(what, []).extend(own)
    return [row(what, own, WANTED.get(what, "")) for what, own in values.items()]


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    if names[:1] == ["here"]:
        print(json.dumps(MEASURED[names[1]][0](Path(folder))))
    else:
        for name in names or MEASURED:
            table = keep("rehearsal", measured(folder, name))
        print(table.to_string(index=False))
