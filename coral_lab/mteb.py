"""Where models are compared: any dataset as a retrieval task of mteb's, any model as an encoder of mteb's.

    from coral_lab.mteb import MERIT, run
    result = run(cl.load("mini"), MERIT(cl.dataset("mini")), "scores")
    result.get_score()                                   # hit_rate_at_1, which is our R@1

A query holds its text, with `<image>` where each of its pictures goes, and its pictures in that order, in a
list. Most of mteb's models take one picture at most: in the formats "cat" and "merit cat", where no query has
more, it is no list, and any of them can be compared.

MERIT's R@k asks whether one right answer is among the first k. That is mteb's `hit_rate_at_k`; its
`recall_at_k` is the share of all right answers, and another figure. Of products with equal scores mteb puts
the higher id first, and we the one that stands first in the pool.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from coral_lab.encoder import UNKEPT, Settings, encode, progress_bar
from coral_lab.errors import ItemError, require
from coral_lab.images import digest
from coral_lab.prompts import Format, Part, format_name, parts
from coral_lab.query import Condition, Dataset, Product, Query, name_of
from coral_lab.sources.border import brief
from coral_lab.sources.files import output_folder, write_text
from coral_lab.sources.instructions import IMAGE
from coral_lab.sources.picture_column import Shown, shelved

mteb = require("mteb", "mteb")
datasets = require("datasets", "mteb")
AbsTaskRetrieval: Any = require("mteb.abstasks.retrieval", "mteb").AbsTaskRetrieval
ModelMeta = require("mteb.models.model_meta", "mteb").ModelMeta
PromptType = require("mteb.types", "mteb").PromptType
protocols = require("mteb.models.models_protocols", "mteb")
wrappers = require("mteb.models.search_wrappers", "mteb")
SearchEncoderWrapper: Any = wrappers.SearchEncoderWrapper

LANGUAGES = {"en": "eng-Latn", "id": "ind-Latn", "ms": "msa-Latn", "th": "tha-Thai", "vi": "vie-Latn"}
"""MERIT's languages by mteb's names."""

_ESCAPE = "\N{WORD JOINER}"


def marked(found: Iterable[Part]) -> str:
    """A query's parts as one text, with IMAGE where a picture goes; a text's own is told apart from it by a
    character that takes no room.
    """
    return "".join(
        re.sub(f"<({_ESCAPE}*)image>", f"<{_ESCAPE}\\1image>", part) if isinstance(part, str) else IMAGE
        for part in found
    )


def interleaved(query: Query) -> Iterator[Part]:
    """The format of a query whose text was `marked`: its references where the marks are, or in front of a
    text that has another number of marks.
    """
    texts, shown = query.text.split(IMAGE), query.references
    if len(texts) != len(shown) + 1:
        yield from shown
        yield query.text
        return
    for text, product in zip(texts, (*shown, None), strict=True):
        if text:
            yield re.sub(f"<{_ESCAPE}({_ESCAPE}*)image>", "<\\1image>", text)
        if product is not None:
            yield product


class MERIT(AbsTaskRetrieval):
    """A dataset as a retrieval task of mteb's, made offline of what the dataset holds.

    `format` is how queries are worded. A query's reference products are left out of its own ranking unless
    they are positives, as `Index.evaluate` does; `exclude_references` False keeps them. mteb has no such
    choice, so the task hands its evaluator a search that asks for so many more and drops them. Results are
    kept by the task's name, which says what it was made of unless another is given, and by the dataset's
    revision, here a digest of ids, texts, answers and choices (and not of pictures, which it would have to
    open). `hit_rate_at_k` is not rounded. Raises ItemError for products or queries of one id, for a query
    without a positive in the pool, and for one that `format` words into nothing.
    """

    k_values = (1, 3, 5, 10, 20, 100)
    data_loaded: bool = False

    def __init__(
        self,
        dataset: Dataset,
        format: str | Format = "seq",
        *,
        exclude_references: bool = True,
        name: str | None = None,
        seed: int = 42,
    ) -> None:
        _check(dataset)
        self.source, self.format, self.exclude_references = dataset, format, exclude_references
        self._described = _task_metadata(self, name)
        super().__init__(seed=seed)

    @property
    def metadata(self) -> Any:
        """mteb's TaskMetadata; a property, for mteb forgets an attribute when it unloads a task's data."""
        return self._described

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Make the tables of products and queries; pictures stay where they are."""
        if self.data_loaded:
            return
        ids = self.source.by_id
        relevant = {q.id: {id: 1 for id in q.positives if id in ids} for q in self.source.queries}
        tables = {"corpus": self._corpus(), "queries": self._queries()}
        self.dataset = {"default": {"test": tables | {"relevant_docs": relevant, "top_ranked": None}}}
        self.data_loaded = True

    def _corpus(self) -> Any:
        pool = self.source.products
        self._products, places = shelved(pool)
        shown = [place if own.image is not None else None for own, place in zip(pool, places, strict=True)]
        return _table([own.id for own in pool], [own.title for own in pool], shown, Shown())

    def _queries(self) -> Any:
        asked = self.source.queries
        worded = [parts(query, self.format) for query in asked]
        pictures = [[part for part in own if not isinstance(part, str)] for own in worded]
        self._references, places = shelved(part for own in pictures for part in own)
        left = iter(places)
        shown: list = [[next(left) for _ in own] for own in pictures]
        several = max(map(len, shown), default=0) > 1
        kind = datasets.List(Shown()) if several else Shown()
        shown = shown if several else [own[0] if own else None for own in shown]
        return _table([q.id for q in asked], [*map(marked, worded)], shown, kind)

    def _evaluate_subset(self, model: Any, data_split: Any, **own: Any) -> Any:
        if self.exclude_references:
            left_out = {q.id: {p.id for p in q.references} - set(q.positives) for q in self.source.queries}
            model = _LeavingOut(model, left_out)
        return super()._evaluate_subset(model, data_split, **own)

    def task_specific_scores(self, scores: Mapping[str, Mapping[str, float]], *_: Any, **__: Any) -> dict:
        """The hit rates once more: mteb rounds its own to five places."""
        found = {k: [own[f"success_{k}"] for own in scores.values()] for k in self.k_values}
        return {f"hit_rate_at_{k}": float(np.mean(values)) for k, values in found.items()}


def _check(dataset: Dataset) -> None:
    for items in (dataset.products, dataset.queries):
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise ItemError(name_of(item), "its id stands twice; give each its own")
            seen.add(item.id)
    for query in dataset.queries:
        if not any(id in dataset.by_id for id in query.positives):
            problem = f"none of its {len(query.positives)} positives is in the pool; leave it out"
            raise ItemError(name_of(query), problem)


def _table(ids: Sequence[str], texts: Sequence[str], pictures: Sequence, kind: Any) -> Any:
    text = datasets.Value("string")
    kinds = datasets.Features({"id": text, "text": text, "image": kind})
    return datasets.Dataset.from_dict({"id": ids, "text": texts, "image": pictures}, features=kinds)


def _task_metadata(task: MERIT, name: str | None) -> Any:
    own, format = task.source, format_name(task.format)
    words = ["MERIT", own.name, *([format] if format != "seq" else [])]
    words += [] if task.exclude_references else ["references kept"]
    languages = sorted({LANGUAGES[p.language] for p in own.products if p.language in LANGUAGES})
    return mteb.TaskMetadata(
        name=name or _file_name("-".join(words)),
        description=f"Products of {own.name} that meet several conditions, asked in the format {format}; "
        f"reference products are {'left out' if task.exclude_references else 'kept'}. R@k is hit_rate_at_k.",
        reference="https://arxiv.org/abs/2506.03144",
        dataset={"path": own.name, "revision": _revision(task)},
        type="Any2AnyRetrieval",
        category="it2it",
        modalities=["text", "image"],
        eval_langs=languages or ["eng-Latn"],
        main_score="hit_rate_at_1",
        domains=["E-commerce"],
        task_subtypes=["Query-Product Relevance"],
    )


def _revision(task: MERIT) -> str:
    found = [format_name(task.format), str(task.exclude_references)]
    found += [f"{p.id}\n{p.title}" for p in task.source.products]
    for query in task.source.queries:
        shown = (product.id for product in query.references)
        found += [query.id, marked(parts(query, task.format)), *query.positives, *shown]
    return digest(found)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip(".-")[-120:] or "unnamed"


class _LeavingOut(SearchEncoderWrapper):
    """A search whose rankings go without some products of each query's. It is of this kind because mteb hands
    its clock to no other.
    """

    def __init__(self, model: Any, left_out: Mapping[str, set[str]]) -> None:
        self.inner, self.left_out, self.index_backend = _search_by(model), left_out, None
        self.mteb_model_meta = model.mteb_model_meta

    def index(self, corpus: Any, **own: Any) -> None:
        self.inner.index(corpus, **own)

    def search(self, queries: Any, *, top_k: int, **own: Any) -> dict[str, dict[str, float]]:
        spare = max(map(len, self.left_out.values()), default=0)
        found = self.inner.search(queries, top_k=top_k + spare, **own)
        return {id: _best(scores, top_k, self.left_out.get(id, set())) for id, scores in found.items()}


def _search_by(model: Any) -> Any:
    """As mteb chooses it, by what a model can do."""
    if isinstance(model, protocols.SearchProtocol):
        return model
    wrapper = wrappers.SearchCrossEncoderWrapper if hasattr(model, "predict") else SearchEncoderWrapper
    return wrapper(model)


def _best(scores: Mapping[str, float], k: int, gone: set[str]) -> dict[str, float]:
    kept = {id: score for id, score in scores.items() if id not in gone}
    return {id: kept[id] for id in sorted(kept, key=lambda id: (kept[id], id), reverse=True)[:k]}


class Encoder:
    """A model of ours as mteb asks one: anything that `encode` takes.

    Queries are the text, with pictures where it has IMAGE for each of them and else in front of it;
    everything else is a product with the text as its title, which the model words as it words products. So on
    a `MERIT` task embeddings are those of `encode`. `settings` are those of `encode`, by default such that
    nothing is kept; mteb's `batch_size` goes before theirs. `facts` replace fields of the metadata, such as
    `license` or `revision`; mteb keeps results by name and revision. Raises ItemError for a document with
    several pictures, ValueError for embeddings in another precision.
    """

    def __init__(self, model: Any, settings: Settings = UNKEPT, **facts: Any) -> None:
        self.model, self.settings = model, settings
        self.mteb_model_meta = _model_metadata(model, facts)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **asked: Any,
    ) -> Float32[np.ndarray, "item dim"]:
        """L2-normalised embeddings of mteb's batches, in order. (The parameters are mteb's.)"""
        if asked.get("precision", "float32") != "float32":
            raise ValueError(f"precision is {brief(asked['precision'])}; leave it out for float32")
        settings = replace(self.settings, batch_size=asked.get("batch_size", self.settings.batch_size))
        found = [np.empty((0, self.model.dim), np.float32)]
        for batch in progress_bar(asked.get("show_progress_bar", False), inputs, desc="mteb", unit="batch"):
            items = _items(batch, prompt_type == PromptType.query)
            found.append(encode(self.model, items, interleaved, replace(settings, progress=False)))
        return np.concatenate(found)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Dot products [first, second], which are cosines."""
        first, second = (torch.atleast_2d(torch.as_tensor(own)) for own in (embeddings1, embeddings2))
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """The cosine of each row of one with the same row of the other."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)


def _items(batch: Mapping[str, Sequence], queries: bool) -> list[Product | Query]:
    """What a batch asks about. mteb strips a document's text and puts its title in front: `body` is as the
    task has it.
    """
    count = len(next(iter(batch.values())))
    texts = batch.get("body" if "body" in batch and "title" not in batch and not queries else "text")
    names = [str(own) for own in batch.get("id", range(count))]
    shown = [_pictures(own) for own in batch.get("image", [None] * count)]
    make = _query if queries else _product
    return [make(*row) for row in zip(names, texts or [""] * count, shown, strict=True)]


def _pictures(value: Any) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _query(name: str, text: str, pictures: Sequence) -> Query:
    shown = [Product(f"{name}, picture {i}", image=own) for i, own in enumerate(pictures, 1)]
    return Query(name, "", tuple(Condition("", product) for product in shown), text)


def _product(name: str, text: str, pictures: Sequence) -> Product:
    if len(pictures) > 1:
        problem = f"shows {len(pictures)} pictures, and a document is a product with one; leave the task out"
        raise ItemError(f"document {name}", problem)
    return Product(name, text, pictures[0] if pictures else None)


def _model_metadata(model: Any, facts: Mapping[str, Any]) -> Any:
    """mteb's ModelMeta of a model: what it tells of itself, and None for what is not known."""
    network = getattr(model, "network", None)
    tensors = list(network.parameters()) if network is not None else []
    on_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model.name) and not Path(model.name).exists()
    told: dict[str, Any] = {
        "name": model.name if on_hub else f"coral-lab/{_file_name(Path(model.name).name)}",
        "revision": _file_name(getattr(model, "fingerprint", None) or "no_revision_available"),
        "embed_dim": model.dim,
        "n_parameters": sum(own.numel() for own in tensors) or None,
        "memory_usage_mb": sum(own.numel() * own.element_size() for own in tensors) / 2**20 or None,
        "max_tokens": getattr(model, "longest", None),
        "open_weights": bool(tensors) or None,
        "framework": ["PyTorch", "Transformers"] if tensors else [],
        "similarity_fn_name": "cosine",
        "modalities": ["text", "image"],
        "use_instructions": True,
    }
    unknown = [key for key, own in ModelMeta.model_fields.items() if own.is_required()]
    return ModelMeta(**dict.fromkeys(unknown) | told | dict(facts))


def run(model: Any, task: Any, folder: str | Path | None = None, **options: Any) -> Any:
    """mteb's TaskResult of a model, ours or wrapped, on any of its tasks; `options` are `mteb.evaluate`'s.

    With `folder` it is written there as mteb's JSON, with the model's metadata beside it, where mteb's own
    cache has them: `results/{model}/{revision}/{task}.json`, scores rounded to six places as mteb does. What
    was there of the same is replaced. Raises ValueError for a folder that cannot be written.
    """
    if folder is not None:
        folder = output_folder(Path(folder).expanduser())
    encoder = model if hasattr(model, "mteb_model_meta") else Encoder(model)
    chosen = {"cache": None, "co2_tracker": False, "show_progress_bar": False} | options
    result = mteb.evaluate(encoder, task, **chosen).task_results[0]
    if folder is not None:
        _write(result, encoder.mteb_model_meta, folder)
    return result


def _write(result: Any, meta: Any, folder: Path) -> None:
    path = mteb.ResultCache(folder).get_task_result_path(result.task_name, meta)
    for parent in reversed(path.relative_to(folder).parents):
        output_folder(folder / parent)
    with TemporaryDirectory() as own:  # mteb writes where it is told to; from there the one way that files go
        result.to_disk(Path(own) / path.name)
        write_text(path, (Path(own) / path.name).read_text(encoding="utf-8"))
    write_text(path.parent / "model_meta.json", json.dumps(meta.to_dict(), default=str, indent=4) + "\n")
