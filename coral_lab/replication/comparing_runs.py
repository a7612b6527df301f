"""What `compare` does with one model after the other: names, checks, encoding, and the items all can use."""

import gc
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from coral_lab.encoder import Settings
from coral_lab.errors import ItemError, MissingExtraError, one_line
from coral_lab.evaluation import Asked, asked, metric_names
from coral_lab.metrics import DEPTH
from coral_lab.models.loading import SHIPPED, checkpoint_folder, load
from coral_lab.models.protocol import Conversation, Embedder, fingerprint_of
from coral_lab.prompts import Format, format_of
from coral_lab.query import Dataset, name_of
from coral_lab.replication.comparing_cost import Cost, cost_of, forget_peak, peak
from coral_lab.retrieval import index
from coral_lab.sources.border import brief

Given = str | PathLike | Embedder
"""What stands for a model: a name, a folder, a hub id, or a loaded one."""


@dataclass(frozen=True)
class LetGo:
    """What is left of a model that was let go of. Raises ValueError if it is to encode."""

    name: str
    dim: int

    def embed(self, conversations: Sequence[Conversation]) -> Any:
        raise ValueError(f"model {brief(self.name)} was let go of after it was compared; load it again")


@dataclass(frozen=True, eq=False)
class Run:
    """One model's encoded pool and queries, what it costs, and what it is."""

    asked: Asked
    cost: Cost
    facts: Mapping[str, Any]


def named(models: Sequence[Given] | Mapping[str, Given]) -> dict[str, Given]:
    """The models by names that tell them apart: a folder goes by its own, and by those above it if another
    has the same. Raises ValueError for fewer than two, or two of one name.
    """
    if isinstance(models, str | PathLike):
        raise ValueError(f"models is {brief(str(models))}; give a list of at least two")
    given = list(models.items()) if isinstance(models, Mapping) else [("", model) for model in models]
    if len(given) < 2:
        raise ValueError(f"{len(given)} models are given; give at least two")
    words = [(label,) if label else _words(model) for label, model in given]
    labels = [own[-1] for own in words]
    for length in range(2, max(map(len, words)) + 1):
        twice = {label for label in labels if labels.count(label) > 1}
        labels = [
            "/".join(own[-length:]) if label in twice else label
            for label, own in zip(labels, words, strict=True)
        ]
    for label in labels:
        if labels.count(label) > 1:
            way = "give each once, or a dict with names of your own"
            raise ValueError(one_line(f"two models are called {brief(label)}; {way}"))
    return dict(zip(labels, (model for _, model in given), strict=True))


def _words(model: Given) -> tuple[str, ...]:
    """What a model can be called by the last of: the path of a folder or file, or its one name."""
    name = os.fspath(model) if isinstance(model, str | PathLike) else model.name
    if name not in SHIPPED and os.path.exists(name):
        return Path(name).resolve().parts
    return (name,)


def check(
    models: Mapping[str, Given],
    dataset: Dataset,
    format: str | Format,
    settings: Settings,
    k: int,
    options: Mapping[str, Any],
) -> None:
    """All that can be known before a model is loaded; hub ids are downloaded. Raises ValueError, ItemError
    for a query without an answer, or CheckpointError for what is no checkpoint.
    """
    format_of(format)
    if k < DEPTH:
        raise ValueError(f"queries are to be ranked to depth {k}; give at least {DEPTH}")
    if not dataset.queries or not dataset.products:
        raise ValueError(f"{brief(dataset.name)} has no queries or no products; give at least one of each")
    metric_names(dataset.queries)
    for query in dataset.queries if settings.on_error == "raise" else ():
        if not any(id in dataset.by_id for id in query.positives):
            problem = f"none of its {len(query.positives)} positives is in the pool; check the split"
            raise ItemError(name_of(query), problem)
    if other := sorted(options.keys() - signature(load).parameters.keys()):
        raise ValueError(f"option {brief(other[0])} is not known; the others are those of cl.load")
    for label, model in models.items():
        if isinstance(model, str | PathLike):
            source = options.get("revision"), options.get("offline", False)
            checkpoint_folder(os.fspath(model), *source)
        elif not isinstance(model, Embedder):
            problem = f"model {brief(label)} is {brief(model)}"
            raise ValueError(f"{problem}; give a name, a folder, a hub id or a loaded model")


def encoded(
    label: str,
    given: Given,
    dataset: Dataset,
    format: str | Format,
    settings: Settings,
    options: Mapping[str, Any],
) -> Run:
    """One model's part; it is let go of at the end if it was loaded here."""
    model: Embedder = load(given, **options) if isinstance(given, str | PathLike) else given
    forget_peak(model)
    cost = cost_of(model, dataset, format, settings)
    pool = index(model, dataset.products, format, settings)
    found = asked(pool, dataset.queries)
    cost = replace(cost, peak_bytes=peak(model))
    facts = _facts(model)
    found = replace(found, index=replace(pool, model=LetGo(label, model.dim)))
    del model, pool
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Run(found, cost, facts)


def _facts(model: Embedder) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": _in_words(model), "fingerprint": None}
    with suppress(MissingExtraError):  # loaded models hash their weights by a package of the extra `store`
        facts["fingerprint"] = fingerprint_of(model)
    return facts


def _in_words(model: Embedder) -> str:
    """A model's own words, but of a folder only its name: a page is for others."""
    name = model.name
    return repr(model).replace(name, Path(name).name) if os.path.isdir(name) else repr(model)


def same_items(runs: Mapping[str, Asked]) -> tuple[dict[str, Asked], tuple[ItemError, ...]]:
    """What every model was asked, over the products that all could read, and what was left out for all.

    Raises ValueError if nothing is left.
    """
    pools = [{product.id for product in run.index.products} for run in runs.values()]
    products = set.intersection(*pools)
    queries = set.intersection(*({query.id for query in run.queries} for run in runs.values()))
    first = next(iter(runs.values()))
    lost = [q for q in first.queries if q.id in queries and products.isdisjoint(q.positives)]
    queries -= {query.id for query in lost}
    if not queries:
        raise ValueError("no query is left that all models can use; compare fewer models")
    gone = _union({name: run.index.skipped for name, run in runs.items()})
    unasked = _union({name: run.skipped for name, run in runs.items()})
    unasked += tuple(ItemError(name_of(query), "its positives were left out of the pool") for query in lost)
    left = {}
    for name, run in runs.items():
        only = _only(run, products, queries)
        left[name] = replace(only, index=replace(only.index, skipped=gone), skipped=unasked)
    return left, (*gone, *unasked)


def _union(errors: Mapping[str, Sequence[ItemError]]) -> tuple[ItemError, ...]:
    """Each item once, with the models that could not use it unless it was all of them."""
    found: dict[str, tuple[ItemError, list[str]]] = {}
    for name, own in errors.items():
        for error in own:
            found.setdefault(error.item, (error, []))[1].append(name)
    return tuple(
        error if len(names) == len(errors) else ItemError(item, f"{error.problem} ({', '.join(names)})")
        for item, (error, names) in found.items()
    )


def _only(run: Asked, products: set[str], queries: set[str]) -> Asked:
    """What was asked, without other products and queries."""
    pool = run.index
    rows = [i for i, product in enumerate(pool.products) if product.id in products]
    if len(rows) < len(pool.products):
        chosen = tuple(pool.products[i] for i in rows)
        pool = replace(pool, products=chosen, embeddings=pool.embeddings[rows])
    places = [i for i, query in enumerate(run.queries) if query.id in queries]
    if len(places) == len(run.queries):
        return replace(run, index=pool)
    kept = tuple(run.queries[i] for i in places)
    return replace(run, index=pool, queries=kept, embeddings=run.embeddings[places])
