"""Encoding a catalogue into a store with many workers, on engines that exist: this process, processes that
`torchrun` started, Ray, or vLLM.

Whatever stops in the middle, the same call goes on with the blocks that are not done.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from tqdm.auto import tqdm

from coral_lab.encoder import Settings, progress_bar
from coral_lab.errors import ItemError
from coral_lab.models.loading import load
from coral_lab.models.protocol import Embedder
from coral_lab.query import Dataset, Product
from coral_lab.store.blocks import Block, Done, Job, Marks, Source, commit, encode_block, plan
from coral_lab.store.keeping import table_of
from coral_lab.store.store import Added
from coral_lab.store.tables import PRODUCTS, Table, address

ENGINES = ("local", "torchrun", "ray", "vllm")
SAMPLE = 32
"""Products that vLLM is checked with."""

POLL = 0.5
"""Seconds between two looks at what other processes have done."""

Work = Callable[[Sequence[Block]], Iterator[Done]]
"""Encodes blocks, in whatever order."""


@dataclass(frozen=True)
class Engine:
    """Who does the work: this process ("local"), the processes that `torchrun` started, "ray" with so many
    `workers`, which hold a model each and take `gpus` each, by default one if there is any; or this process
    by "vllm", let in if it agrees with our own encoder on a `sample` of so many products. A `block` is what
    a kill may cost a worker: 256 products by default, more of a large catalogue. Raises ValueError for what
    does not go together.
    """

    name: str = "local"
    workers: int = 1
    gpus: float | int | None = None
    block: int | None = None
    sample: int = SAMPLE

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ValueError(f"engine is {self.name!r}; choose one of {', '.join(ENGINES)}")
        if self.workers < 1 or (self.block is not None and self.block < 1):
            raise ValueError(
                f"engine has {self.workers} workers and blocks of {self.block}; both are 1 or more"
            )
        if self.name != "ray" and (self.workers, self.gpus) != (1, None):
            raise ValueError(
                f"workers and gpus are for ray, and the engine is {self.name}; torchrun says its own"
            )
        if self.sample < 1:
            raise ValueError(f"engine has a sample of {self.sample} products; it is 1 or more")
        if self.name != "vllm" and self.sample != SAMPLE:
            raise ValueError(f"sample is for vllm, and the engine is {self.name}; leave it out")


def encode_sharded(
    model: str | Callable[[], Embedder],
    data: Dataset | Sequence[Product] | Source,
    store: str | os.PathLike,
    engine: Engine = Engine(),
    settings: Settings = Settings(),
) -> Added:
    """Encode all products that the store has no row of yet, and make them rows in one step at the end.

    `model` is a name that `cl.load` takes, or a function that loads one: each worker has its own. `data` are
    products, which are sent to the workers, or a `Source`, which they open themselves. A product whose id has
    a row is left as it is, and so is a block that was done before a picture of it changed; `Store.add` looks
    whether they did. Raises what `cl.encode` does, StoreError where the store cannot be written, and
    ModelMismatchError where vLLM's embeddings are not our own encoder's.
    """
    given = data.products if isinstance(data, Dataset) else data
    source = given if isinstance(given, Source) else Source(given=given)
    make = partial(load, model, device=own_device()) if isinstance(model, str) else model
    job = Job(address(store), make, source, settings)
    if engine.name == "ray":
        from coral_lab.store.ray_engine import with_ray

        return with_ray(job, engine)
    if engine.name == "vllm":
        from coral_lab.store.vllm_engine import with_vllm

        return with_vllm(job, engine)
    own = make()
    table = table_of(job.store, own)
    rank, count = _place() if engine.name == "torchrun" else (0, 1)
    return run(job, table, engine, partial(_here, job, own, table), rank, count)


def _place() -> tuple[int, int]:
    """Which of how many processes this is, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device() -> str | None:
    """Processes that torchrun started on one machine take a GPU each; None for the best device there is."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and torch.cuda.is_available() else None


def _here(job: Job, model: Embedder, table: Table, blocks: Sequence[Block]) -> Iterator[Done]:
    quiet = replace(job.settings, progress=False)
    for block in blocks:
        yield encode_block(model, table, block, job.products(block), quiet)


def run(job: Job, table: Table, engine: Engine, work: Work, rank: int = 0, count: int = 1) -> Added:
    """Plan, do what is not done, commit: all of it, or as one of `count` processes every so-manieth block.

    The first process waits for the others and commits. Who starts them ends all when one fails.
    """
    table.make_own()
    version = table.opened().version
    blocks, marks = plan(table, job.source, engine.block), Marks(table)
    sizes, done = {block.name: len(block.places) for block in blocks}, marks.read()
    mine = [block for block in blocks[rank::count] if block.name not in done]
    there = sum(sizes[name] for name in sizes.keys() & done.keys())
    show = rank == 0 and job.settings.progress is not False
    with progress_bar(show, total=sum(sizes.values()), initial=there, desc="encode", unit="item") as bar:
        for one in work(mine):
            marks.add([one])
            bar.update(sizes[one.block])
        if count > 1:
            _wait(marks, sizes, rank, bar)
    if rank:
        return Added(table.count(PRODUCTS), ())
    found = commit(table, blocks, job.source, version)
    skipped = tuple(ItemError(*own) for one in found for own in one.skipped)
    if len(found) < len(blocks):  # some of their products were added by others meanwhile
        skipped += run(job, table, engine, work).skipped
    return Added(table.count(PRODUCTS), skipped)


def _wait(marks: Marks, sizes: dict[str, int], rank: int, bar: tqdm) -> None:
    """The first process, until all blocks are done; another not at all."""
    while rank == 0 and (done := sizes.keys() & marks.read().keys()) != sizes.keys():
        bar.update(sum(sizes[name] for name in done) - bar.n)
        time.sleep(POLL)
