"""What MERIT and CORAL take at their full sizes on this machine: reading 51,177 products and 10,000 queries,
loading a checkpoint of the 3B's shape, encoding three products and a query with pictures of 336 pixels, and
what else there is on all of MERIT with coral-mini.

FLOP/s are of the linear layers' products that run, two for each weight and token. Weights are random.

python benchmarks/rehearsal.py FOLDER [read] [load] [encode] [hub] [whole]     FOLDER: what `rehearse` wrote
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import constants
from table import keep, megabytes, row

import coral_lab as cl
from coral_lab.models.checkpoint_files import checked
from coral_lab.models.loading import checkpoint_folder
from coral_lab.models.model import Model
from coral_lab.query import Product
from coral_lab.replication import report
from coral_lab.study.geometry import umap

SIDE = 336  # pixels
COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


def hub(folder: Path) -> dict[str, list[float]]:
    """Both by their names on the hub, as a download lays them out: blobs, and a snapshot of links to them."""
    cache = folder / "hub"
    for kind, name in (("models", "Bia/CORAL"), ("datasets", "WeiChow/merit")):
        _as_downloaded(folder / name.partition("/")[2].lower(), cache / f"{kind}--{name.replace('/', '--')}")
    constants.HF_HUB_CACHE = str(cache)
    taken, shop = seconds(lambda: cl.dataset("WeiChow/merit", offline=True))
    assert len(shop.products) == 51_177
    looked, _ = seconds(lambda: checked(checkpoint_folder("Bia/CORAL", offline=True)))
    return {"read as downloaded: s": [taken], "checkpoint as downloaded, looked through: s": [looked]}


def _as_downloaded(source: Path, repository: Path) -> None:
    """Links, so that no second copy is made."""
    shutil.rmtree(repository, ignore_errors=True)
    for folder in (repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    for i, file in enumerate(file for file in source.rglob("*") if file.is_file()):
        blob = repository / f"blobs/{i:040x}"
        blob.hardlink_to(file)
        place = repository / "snapshots" / COMMIT / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    (repository / "refs/main").write_text(COMMIT)


def whole(folder: Path) -> dict[str, list[float]]:
    """coral-mini on all of it: a store, an evaluation, a map, a report. What FOLDER/store has is not made
    again.
    """
    shop, model = cl.dataset(folder / "merit"), cl.load("mini")
    settings = cl.Settings(store=str(folder / "store"), progress=True)
    new = not (folder / "store").exists()
    first, pool = seconds(lambda: cl.index(model, shop.products, settings=settings))
    again, _ = seconds(lambda: cl.index(model, shop.products, settings=settings)) if new else (first, None)
    asked, result = seconds(lambda: pool.evaluate(shop.queries))
    mapped, places = seconds(lambda: umap(pool.embeddings))
    told, _ = seconds(lambda: report(pool, shop, folder / "report.html"))
    assert places.shape == (51_177, 2)
    return {
        **({"coral-mini, 51,177 products into a store: s": [first]} if new else {}),
        "coral-mini, 51,177 products out of the store: s": [again],
        "coral-mini, 10,000 queries: s": [asked],
        "coral-mini, R@1": [result.metrics["R@1"].mean],
        "coral-mini, a map by UMAP: s": [mapped],
        "coral-mini, a report: s": [told],
        "coral-mini, all of this: peak memory, GB": [peak()],
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


MEASURED = {"read": (read, 3), "load": (load, 2), "encode": (encode, 1), "hub": (hub, 1), "whole": (whole, 1)}


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
