"""Blocks encoded by vLLM in this process, let in only by a check on a sample of the very products.

What vLLM makes goes to our own encoder's table, under our own keys, so that a store filled on a cluster is
searched and gone on with on a laptop; the check is all that lets it in. Of vLLM these public names are used:
`LLM(runner="pooling", convert="embed")` (since 0.10.1) with `pooler_config` (since 0.11), and `LLM.embed` of
prompts with `multi_modal_data`; they are the same in the sources of 0.19.1, the first that allows
transformers 5, and of 0.33.0 (vllm/entrypoints/llm.py, vllm/config/pooler.py). Tried with a stand-in only:
vLLM itself has never run here.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32
from PIL import Image

from coral_lab.encoder import Settings, encode_all
from coral_lab.errors import (
    CheckpointError,
    ItemError,
    ModelMismatchError,
    StoreError,
    one_line,
    require,
)
from coral_lab.models.families import Family
from coral_lab.models.forward import token_ids
from coral_lab.models.inputs import Prompt, conversation, prompt_of
from coral_lab.models.model import Model, network_of
from coral_lab.models.pixels import as_on_the_card
from coral_lab.models.protocol import Conversation
from coral_lab.models.quantizing import check_whole
from coral_lab.models.saving import save
from coral_lab.query import Product, name_of
from coral_lab.sources.border import brief
from coral_lab.store.blocks import Block, Done, Job, encode_block, plan
from coral_lab.store.keeping import row_key, table_of
from coral_lab.store.sharded import Engine, run
from coral_lab.store.store import Added
from coral_lab.store.tables import Record, Table

LEAST = 0.999
"""Least cosine of a product's two embeddings, ours and vLLM's, that lets vLLM in."""

LENGTH = 0.01
"""How far an embedding's length may be from 1: vLLM normalises in the dtype of its pooler."""

TOGETHER = 256
"""Items that go to vLLM in one call, their pictures open: it batches them itself."""

WAY = "encode with Engine('local'), --engine local"


@dataclass(frozen=True, eq=False)
class Vllm:
    """An embedder that asks vLLM what `own` would ask its network: the same text, the same pictures."""

    own: Model
    llm: Any
    version: str
    fingerprint: str

    @property
    def name(self) -> str:
        return f"{self.own.name} by vLLM {self.version}"

    @property
    def dim(self) -> int:
        return self.own.dim

    @property
    def family(self) -> Family:
        return self.own.family

    def embed(self, conversations: Sequence[Conversation]) -> Float32[np.ndarray, "conversation dim"]:
        """Embeddings as vLLM gives them, of length 1. Raises ItemError for a conversation that cannot be
        read, ModelMismatchError for what is no embedding of this model.
        """
        prompts = [prompt_of(self.own, said) for said in conversations]
        shown = [self._shown(prompt) for prompt in prompts]
        self._check_lengths(prompts, shown)
        asked = [_asked(prompt, images) for prompt, images in zip(prompts, shown, strict=True)]
        found = [output.outputs.embedding for output in self.llm.embed(asked, use_tqdm=False)]
        return self._looked_over(found, [prompt.name for prompt in prompts])

    def _shown(self, prompt: Prompt) -> list[Image.Image]:
        if len(prompt.pictures) > 1:
            problem = f"shows {len(prompt.pictures)} pictures, and vLLM is told of 1"
            raise ItemError(prompt.name, f"{problem}; {WAY}")
        patch, straight = self.own.processor.image_processor.patch_size, self.own.family.straight
        return [as_on_the_card(picture, prompt.name, patch, straight) for picture in prompt.pictures]

    def _check_lengths(self, prompts: Sequence[Prompt], shown: Sequence[Sequence[Image.Image]]) -> None:
        """vLLM would refuse all that it was asked together."""
        most = _longest(self.own)
        for prompt, images, ids in zip(prompts, shown, token_ids(self.own, prompts), strict=True):
            length = len(ids) + sum(self.own.pixels.tokens(image) - 1 for image in images)
            if length > most:
                problem = f"is {length:,} tokens long and the model reads {most:,}"
                raise ItemError(prompt.name, f"{problem}; shorten it")

    def _looked_over(
        self, found: Sequence[Sequence[float]], names: Sequence[str]
    ) -> Float32[np.ndarray, "conversation dim"]:
        if len(found) != len(names):
            self._refuse(names[0], f"is one of {len(names)} items, and vLLM gives {len(found)} embeddings")
        for name, vector in zip(names, found, strict=True):
            length = float(np.linalg.norm(np.asarray(vector, np.float64)))
            if len(vector) != self.dim:
                self._refuse(name, f"vLLM gives {len(vector)} numbers, {self.dim} wanted")
            if not np.isfinite(length):
                self._refuse(name, "vLLM gives numbers that are not finite, finite ones wanted")
            if abs(length - 1) > LENGTH:
                self._refuse(name, f"vLLM gives an embedding of length {length:.4g}, 1 wanted")
        return np.asarray(found, np.float32).reshape(len(names), self.dim)

    def _refuse(self, name: str, problem: str) -> NoReturn:
        raise ModelMismatchError(one_line(f"{name}: {problem} (vLLM {self.version}); {WAY}"))


def _asked(prompt: Prompt, images: Sequence[Image.Image]) -> dict[str, Any]:
    """vLLM's own prompt: of one image token a picture it makes as many as the picture has features."""
    shown = {"multi_modal_data": {"image": list(images)}} if images else {}
    return {"prompt": prompt.text, **shown}


def _longest(own: Model) -> int:
    """Most tokens of an item: vLLM takes a tokenizer at its word too."""
    return min(own.longest, int(own.processor.tokenizer.model_max_length))


def options_of(own: Model, folder: Path) -> dict[str, Any]:
    """What `vllm.LLM` is told.

    The prefix cache is off: tokens up to a picture's end tell nothing but its size, so that a key without the
    picture finds another's states (as github.com/vllm-project/vllm/issues/20261 suspects). The limits of
    pictures' sizes are those of the folder's processor, and the pictures have been resized to them;
    `mm_processor_kwargs` is what its architecture is called with.
    """
    config = require("vllm.config", "vllm")
    pooler = config.PoolerConfig(task="embed", pooling_type="LAST", use_activation=True)
    return {
        "model": str(folder),
        "runner": "pooling",
        "convert": "embed",
        "pooler_config": pooler,  # before what the folder says for sentence-transformers
        "dtype": str(own.dtype).removeprefix("torch."),
        "max_model_len": _longest(own),
        "enable_prefix_caching": False,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "mm_processor_kwargs": dict(own.architecture.pictures),
        "mm_processor_cache_gb": 0,  # each picture is shown once
    }


@contextmanager
def opened(own: Model, fingerprint: str) -> Iterator[Vllm]:
    """vLLM with the very weights of `own`, which lie in a temporary folder meanwhile; `own` leaves its GPU
    to it. Raises CheckpointError for what vLLM cannot load.
    """
    vllm = require("vllm", "vllm")
    with TemporaryDirectory(prefix="coral_lab-vllm-") as made:
        folder = Path(made).resolve()
        save(own, folder)
        if own.device.type == "cuda":
            network: Any = own.network  # whose `to` has another type in transformers
            network.to("cpu")
            torch.cuda.empty_cache()
        try:
            llm = vllm.LLM(**options_of(own, folder))
        except Exception as error:  # by what is here: memory, the device, this vLLM
            problem = f"{brief(own.name)} could not be loaded by vLLM {vllm.__version__}"
            why = one_line(str(error), 140)
            raise CheckpointError(f"{problem}: {why}; mend that, or {WAY}") from error
        yield Vllm(own, llm, vllm.__version__, f"{fingerprint} by vLLM {vllm.__version__}")


@dataclass(frozen=True)
class Check:
    """How near vLLM comes to our own encoder: the least cosine, which product had it, of how many."""

    least: float
    item: str
    sample: int
    version: str

    def __str__(self) -> str:
        return (
            f"vLLM {self.version} was let in: least cosine to our own encoder {self.least:.6f} ({self.item}) "
            f"over {self.sample} products, {LEAST} wanted"
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """Products to check vLLM with, and what our own encoder makes of them."""

    products: tuple[Product, ...]
    embeddings: Float32[np.ndarray, "product dim"]


def sample_of(own: Model, products: Sequence[Product], count: int, settings: Settings, seed: int) -> Sample:
    """So many of all products, drawn by `seed`. Raises as `cl.encode` does, and ValueError if there are none
    that can be read.
    """
    places = sorted(random.Random(seed).sample(range(len(products)), min(count, len(products))))
    drawn = [products[place] for place in places]
    found = encode_all(own, drawn, settings=replace(settings, progress=False, store=""))
    left = {place for place, _ in found.skipped}
    kept = [i for i in range(len(drawn)) if i not in left]
    if not kept:
        problem = (
            f"{len(drawn)} of {len(products):,} products were drawn to check vLLM with, none can be read"
        )
        raise ValueError(f"{problem}, 1 or more wanted; mend the data, or {WAY}")
    return Sample(tuple(drawn[i] for i in kept), found.embeddings[kept])


def check(model: Vllm, sample: Sample) -> Check:
    """vLLM's embeddings of a sample against ours. Raises ModelMismatchError, naming the worst product, if
    they are not near enough.

    All are asked for twice, the second time turned round, so that what vLLM keeps of one item shows.
    """
    quiet = Settings(batch_size=TOGETHER, progress=False, store="")
    turned = encode_all(model, sample.products[::-1], settings=quiet).embeddings[::-1]
    both = np.stack([encode_all(model, sample.products, settings=quiet).embeddings, turned])
    cosines = (both.astype(np.float64) * sample.embeddings).sum(-1).min(0)
    worst = int(cosines.argmin())
    item, least, count = name_of(sample.products[worst]), float(cosines[worst]), len(sample.products)
    if not least >= LEAST:
        found = f"vLLM {model.version}'s embedding has cosine {least:.4f} to our own encoder's"
        problem = f"{found}, {LEAST} wanted of all {count} drawn; nothing was written"
        raise ModelMismatchError(one_line(f"{item}: {problem}; {WAY}"))
    return Check(least, item, count, model.version)


@dataclass(frozen=True, eq=False)
class OwnKeys(Table):
    """Our own encoder's table while vLLM fills it: rows get the keys that `own` would have given them, so
    that it finds them. `products` are those of the block at hand, by id.
    """

    own: Model
    products: dict[str, Product] = field(default_factory=dict)

    def batch(self, rows: Sequence[Record], vectors: Float32[np.ndarray, "row dim"]) -> pa.Table:
        return super().batch([replace(row, key=self._key(self.products[row.id])) for row in rows], vectors)

    def _key(self, product: Product) -> str:
        return row_key(product, prompt_of(self.own, conversation(product, family=self.own.family)))


def with_vllm(job: Job, engine: Engine, seed: int = 0) -> Added:
    """`encode_sharded` by vLLM, its check told in `Added.check`; without new products nothing is checked.

    Raises what that does, MissingExtraError, naming the extra, where vLLM is not installed, and before
    anything is written ModelMismatchError for embeddings that are not our own encoder's.
    """
    require("vllm", "vllm")
    own = network_of(job.load(), "vLLM")
    check_whole(own.network, own.name, "given to vLLM")
    table = table_of(job.store, own)
    if not table.can_be_written:
        raise StoreError(f"{job.store!r} cannot be written; name another folder, or ask its owner")
    if not plan(table, job.source, engine.block):
        return run(job, table, engine, lambda blocks: iter(()))
    sample = sample_of(own, job.source.products, engine.sample, job.settings, seed)
    with opened(own, table.name) as model:
        found = check(model, sample)
        return replace(run(job, table, engine, partial(_work, job, model, table)), check=str(found))


def _work(job: Job, model: Vllm, table: Table, blocks: Sequence[Block]) -> Iterator[Done]:
    filled = OwnKeys(table.uri, table.name, table.dim, table.space, model.own)
    together = replace(job.settings, progress=False, batch_size=TOGETHER)
    for block in blocks:
        products = job.products(block)
        filled.products.clear()
        filled.products.update({product.id: product for product in products})
        yield encode_block(model, filled, block, products, together)
