"""Blocks on Ray: tasks open the pictures, actors hold a model each and write their rows.

Ray starts what died again; a block that was not done is done by somebody else.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from coral_lab.errors import ItemError, StoreError, WorkbenchError, require
from coral_lab.images import open_image, pixels_identity, told_identity
from coral_lab.query import Product
from coral_lab.store.blocks import Block, Done, Job, Space, encode_block
from coral_lab.store.keeping import table_of
from coral_lab.store.sharded import Engine, run
from coral_lab.store.store import Added

OPENING, ENCODING = 0.25, 0.5
"""CPUs that a task and a worker ask for. They differ, so that Ray keeps them apart: pictures are opened while
the models work.
"""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture that was opened elsewhere; its identity is that of what it was opened from."""

    pixels: UInt8[np.ndarray, "height width 3"]
    identity: str

    def __call__(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def decoded(product: Product) -> Product:
    """A product with its picture opened; as it was if it cannot be, which the encoder will say."""
    if product.image is None:
        return product
    try:
        image = open_image(product.image, product.id)
    except ItemError:
        return product
    identity = told_identity(product.image) or pixels_identity(image)
    return replace(product, image=Decoded(np.asarray(image), identity))


def with_ray(job: Job, engine: Engine) -> Added:
    """`encode_sharded` on the Ray that runs, or else on one of this machine's. Raises what it does, from
    whichever worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", "cluster")
    require("ray.data", "cluster")
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, configure_logging=False, log_to_driver=False)
    try:
        there = min(1.0, float(ray.cluster_resources().get("GPU", 0)))
        gpus = there if engine.gpus is None else float(engine.gpus)
        asked = ray.remote(_space).options(num_cpus=1, num_gpus=gpus).remote(_without_products(job))
        space = _heard(ray.get(asked))
        return run(job, space.table(job.store), engine, partial(_work, job, space, engine, gpus))
    finally:
        if own:
            ray.shutdown()


def _space(job: Job) -> bytes:
    """As a worker sees it: a GPU may run another dtype than the machine that asks."""
    return _told(lambda: Space.of(table_of(job.store, job.load())))


def _told(make: Callable, *given: Any) -> bytes:
    """What a worker made, or the error that a user can mend: Ray would hand on its text alone."""
    try:
        return pickle.dumps(make(*given))
    except (WorkbenchError, ItemError, ValueError) as error:
        return pickle.dumps(error)


def _heard(told: bytes) -> Any:
    """What a worker made. Raises the error that it told of."""
    found = pickle.loads(told)
    if isinstance(found, Exception):
        raise found
    return found


def _work(job: Job, space: Space, engine: Engine, gpus: float, blocks: Sequence[Block]) -> Iterator[Done]:
    import ray

    there = ray.cluster_resources().get("CPU", 0)
    if (wanted := engine.workers * ENCODING + OPENING) > there:
        raise ValueError(f"{engine.workers} workers need {wanted:g} CPUs and Ray has {there:g}; take fewer")
    if not blocks:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours is over what is done
    rows = [{"block": pickle.dumps((block, _sent(job, block)))} for block in blocks]
    job = _without_products(job)
    opened = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        partial(_open, job=job), num_cpus=OPENING
    )
    pool = ray.data.ActorPoolStrategy(size=engine.workers)
    worker: dict[str, Any] = {"num_cpus": ENCODING} | ({"num_gpus": gpus} if gpus else {})
    found = opened.map(cast(Any, Encoder), fn_constructor_args=(job, space.name), compute=pool, **worker)
    for row in found.iter_rows():
        yield _heard(row["done"])


def _sent(job: Job, block: Block) -> list[Product]:
    """Given products travel with their block; what a worker opens itself does not."""
    return job.products(block) if job.source.given else []


def _without_products(job: Job) -> Job:
    return replace(job, source=replace(job.source, given=()))


def _open(row: dict, job: Job) -> dict:
    return {"part": _told(_opened, job, *pickle.loads(row["block"]))}


def _opened(job: Job, block: Block, sent: Sequence[Product]) -> tuple[Block, list[Product]]:
    return block, [decoded(product) for product in sent or job.products(block)]


class Encoder:
    """A worker: a model, and blocks one after the other."""

    def __init__(self, job: Job, name: str):
        self.model, self.name = job.load(), name
        self.table = table_of(job.store, self.model)
        self.settings = replace(job.settings, progress=False)

    def __call__(self, row: dict) -> dict:
        return {"done": _told(self.encoded, row["part"])}

    def encoded(self, part: bytes) -> Done:
        if self.table.name != self.name:
            problem = f"a worker's {self.model.name} has other weights or another dtype than the first's"
            raise StoreError(f"{problem}; give all workers the same")
        block, products = _heard(part)
        return encode_block(self.model, self.table, block, products, self.settings)
