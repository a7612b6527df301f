"""The evaluation of card and paper, under every choice that these leave open.

An independent run of the released weights finds R@1 0.498 where the paper has 0.697 (`data/published.csv`).
Neither says how references are ranked, how many pixels a picture has, or in which words a query is asked.
Here all of that is tried, and what each choice makes of the result is told from the same queries. Products
are encoded once for all choices that share them, and so are queries; embeddings and rankings are kept, so
that a run that was killed goes on. Pixels and dtype, for which all products have to be encoded anew, are
changed one at a time unless every combination is asked for.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from coral_lab import metrics
from coral_lab.encoder import Settings
from coral_lab.errors import one_line
from coral_lab.evaluation import Result, asked
from coral_lab.images import digest
from coral_lab.models import fingerprints
from coral_lab.models.inputs import prompt
from coral_lab.models.loading import load_network
from coral_lab.models.model import Model, with_most_pixels
from coral_lab.models.pixels import Pixels
from coral_lab.query import Dataset
from coral_lab.replication.cells import provenance
from coral_lab.replication.reproduce_page import MEASURED, write_page
from coral_lab.retrieval import Index, index
from coral_lab.sources.border import brief
from coral_lab.sources.files import csv_text, fresh_file, output_folder, write_text

CHOICES = ("references", "pixels", "wording", "input", "dtype", "positives")
FORMAT_OF = {
    ("card", "seq"): "seq",
    ("card", "cat"): "cat",
    ("merit", "seq"): "merit",
    ("merit", "cat"): "merit cat",
}
FEWER_PIXELS = 1280 * 28 * 28
"""The budget that Qwen2.5-VL's own card suggests, 1,280 image tokens a picture."""

PICTURES = 2**29
"""Bytes of processed pictures that are kept: all of MERIT-mini's; MERIT's hardly come again in time."""

ENCODED = ("dtype", "pixels", "wording", "input")
Way = tuple[str, int, str, str]
"""A way to encode: the choices of ENCODED."""

Values = Mapping[str, Float[np.ndarray, " query"]]


@dataclass(frozen=True)
class Matrix:
    """What is reproduced: a model, and the `choices` that are tried every way; others stay as on the card.

    `pixels` are the most a picture has in the other budget: by default 1,280 image tokens' worth, or half of
    the checkpoint's own if that is less. `crossed` tries pixels and dtype with every wording and input, and
    with one another. Raises ValueError for other choices than CHOICES.
    """

    model: str = "mini"
    choices: tuple[str, ...] = CHOICES
    pixels: int | None = None
    device: str | None = None
    revision: str | None = None
    offline: bool = False
    crossed: bool = False

    def __post_init__(self) -> None:
        if other := [name for name in self.choices if name not in CHOICES]:
            raise ValueError(f"choice {brief(other[0])} is not known; the choices are {', '.join(CHOICES)}")

    def loaded(self, dtype: str | None = None) -> Model:
        return load_network(
            self.model, device=self.device, dtype=dtype, revision=self.revision, offline=self.offline
        )

    def ways(self, options: Mapping[str, tuple]) -> list[Way]:
        """Every way to encode; those with the same model and pixels stand together, the card's first."""
        every = list(product(*(options[name] for name in ENCODED)))
        if self.crossed:
            return every
        return [way for way in every if [*way[:2]] == [*every[0][:2]] or _changes(way, every[0]) == 1]

    def options(self, model: Model) -> dict[str, tuple]:
        """Every choice's values, the card's first. Raises ValueError for pixels that are no other budget."""
        dtype = str(model.dtype).removeprefix("torch.")
        own = model.processor.image_processor.size["longest_edge"]
        if self.pixels is not None and (self.pixels < 28 * 28 or self.pixels == own):
            problem = f"pixels is {self.pixels:,}, and the checkpoint's own {own:,}"
            raise ValueError(f"{problem}; give another number from {28 * 28} on")
        every = {
            "references": ("left out", "kept"),
            "pixels": (own, self.pixels or min(FEWER_PIXELS, own // 2)),
            "wording": ("card", "merit"),
            "input": ("seq", "cat"),
            "dtype": (dtype, "float32" if dtype != "float32" else "bfloat16"),
            "positives": ("best", "each", "first"),
        }
        return {name: values if name in self.choices else values[:1] for name, values in every.items()}


def _changes(way: Way, card: Way) -> int:
    return sum(own != other for own, other in zip(way, card, strict=True))


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What was found: `facts` is everything that it depends on, `cells` a row for each way to evaluate, the
    card's first, and `differences` what each choice makes of the card's cell. `result` is that cell's own,
    and `skipped` says what could not be used, if that was allowed: it is in no cell.
    """

    facts: Mapping[str, Any]
    cells: pd.DataFrame
    differences: pd.DataFrame
    result: Result
    skipped: tuple[str, ...]

    @cached_property
    def card(self) -> Mapping[str, Any]:
        return self.cells.iloc[0].to_dict()

    def __repr__(self) -> str:
        shown = self.cells.iloc[[0]][["queries", *MEASURED]].round(4).to_string(index=False)
        way = ", ".join(f"{name} {self.card[name]}" for name in CHOICES)
        changes = self.differences.round(4).to_string(index=False)
        return f"As the card has it ({way}):\n{shown}\n\nWhat each choice makes of R@1:\n{changes}"


def reproduce(
    matrix: Matrix, shop: Dataset, out: Path, settings: Settings = Settings(), command: str = ""
) -> Reproduction:
    """Measure every cell and write `cells.csv`, `differences.csv`, `settings.json` and `reproduce.html` into
    `out`.

    Goes on where it was stopped. Raises ValueError if what lies there was measured with something else,
    naming the first difference.
    """
    if not shop.queries or not shop.products:
        raise ValueError(f"{shop.name} has no queries or no products; give at least one of each")
    output_folder(out)
    rankings = output_folder(out / "rankings")
    settings = replace(settings, store=str(out / "store"))
    options, facts = _settled(matrix, shop)
    _check_same(out / "settings.json", facts)
    made = {**facts, "made with": provenance() | {"command": command}}
    write_text(out / "settings.json", json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    _rank_all(matrix, shop, options, rankings, settings)
    found = _summed_up(made, shop, matrix.ways(options), options, rankings)
    write_text(out / "cells.csv", csv_text(found.cells))
    write_text(out / "differences.csv", csv_text(found.differences))
    write_page(found, out / "reproduce.html")
    return found


def _settled(matrix: Matrix, shop: Dataset) -> tuple[dict[str, tuple], dict[str, Any]]:
    """Every choice's values, and all that a figure depends on; the model is not kept in memory."""
    model = matrix.loaded()
    options = matrix.options(model)
    examples = {
        f"{kind} as the model reads it": prompt(model, item).text
        for kind, item in (("first query", shop.queries[0]), ("first product", shop.products[0]))
    }
    return options, {
        "model": fingerprints.space(model),
        "attention": model.attention,
        "quick": model.quick,
        "device": str(model.device),
        "data": {
            "name": shop.name,
            "products": len(shop.products),
            "queries": len(shop.queries),
            "content": _content(shop),
            "skipped": [str(error) for error in shop.skipped],
        },
        "choices": {name: list(values) for name, values in options.items()},
        **examples,
    }


def _content(shop: Dataset) -> str:
    """What was asked of what; pictures are known by the store."""
    products = (f"{product.id} {product.title}" for product in shop.products)
    queries = (
        f"{query.id} {query.class_name} {[(c.attribute, c.product.id) for c in query.conditions]} "
        f"{query.text} {query.positives}"
        for query in shop.queries
    )
    return digest([*products, *queries])


def _check_same(file: Path, facts: Mapping[str, Any]) -> None:
    if not file.is_file():
        return
    old = json.loads(file.read_text(encoding="utf-8"))
    for name in ("data", "model", "choices"):
        was, now = old.get(name), json.loads(json.dumps(facts[name]))
        if was != now:
            parts = [key for key in now if not isinstance(was, dict) or was.get(key) != now[key]]
            part = parts[0] if parts else name
            kept = was.get(part) if isinstance(was, dict) else was
            problem = f"{file} is of {name} with {part} {brief(kept)}, not {brief(now.get(part))}"
            raise ValueError(one_line(f"{problem}; name another --out"))


def _rank_all(
    matrix: Matrix,
    shop: Dataset,
    options: Mapping[str, tuple],
    rankings: Path,
    settings: Settings,
) -> None:
    """Rank the pool for every way to encode that is not in `rankings` yet."""
    todo = [way for way in matrix.ways(options) if not _file(rankings, *way).is_file()]
    seen: dict[int, Pixels] = {}  # processed pictures do not depend on the dtype
    model: Model | None = None
    pool: tuple[tuple, Index] | None = None
    bar = tqdm(todo, desc="reproduce", unit="encode", disable=settings.progress is False)
    for dtype, pixels, wording, input in bar:
        if pool is None or pool[0] != (dtype, pixels):
            pool = None  # one pool and one model at a time
            if model is None or str(model.dtype) != f"torch.{dtype}":
                model = None
                model = matrix.loaded(dtype)
            looking = with_most_pixels(model, pixels)
            looking.__dict__["pixels"] = seen.setdefault(pixels, looking.pixels)
            looking.pixels.limit = PICTURES
            pool = (dtype, pixels), index(looking, shop.products, settings=settings)
        found = asked(pool[1], shop.queries, FORMAT_OF[wording, input], settings)
        kept = {"left out": found.ranked(), "kept": found.ranked(exclude_references=False)}
        _keep(_file(rankings, dtype, pixels, wording, input), kept, shop)


def _file(rankings: Path, dtype: str, pixels: int, wording: str, input: str) -> Path:
    return rankings / f"{dtype}-{pixels}-{wording}-{input}.npz"


def _keep(file: Path, results: Mapping[str, Result], shop: Dataset) -> None:
    """Rankings by whether references were kept, with the places of queries and products in the dataset."""
    first = next(iter(results.values()))
    place = {query.id: i for i, query in enumerate(shop.queries)}
    row = {product.id: i for i, product in enumerate(shop.products)}
    arrays: dict[str, np.ndarray] = {
        "queries": np.array([place[query.id] for query in first.queries], np.int32),
        "products": np.array([row[product.id] for product in first.products], np.int32),
        "skipped": np.array([str(error) for error in (*first.skipped, *first.skipped_products)], dtype=str),
    }
    for name, result in results.items():
        arrays |= {f"{name} rows": result.ranked.astype(np.int32), f"{name} scores": result.scores}
    with fresh_file(file) as handle:
        np.savez(handle, allow_pickle=False, **arrays)


def read_ranking(file: Path, shop: Dataset, references: str = "left out", model: str = "") -> Result:
    """The ranking that a way to encode gave, as `evaluate` would give it."""
    with np.load(file, allow_pickle=False) as arrays:
        queries = tuple(shop.queries[i] for i in arrays["queries"])
        products = tuple(shop.products[i] for i in arrays["products"])
        rows = arrays[f"{references} rows"].astype(np.int64)
        return Result(model, queries, products, rows, arrays[f"{references} scores"])


def values_of(result: Result, positives: str = "best") -> Values:
    """Each query's R@1, R@5, R@10 and MRR@10, by which of its positives count.

    "best": the one that is placed best, as the authors' metric has it (mteb's hit rate). "first": the one
    that stands first among `pos_candidate`. "each": the mean over all of them (mteb's and ranx's recall).
    """
    relevant = result.relevant[:, : metrics.DEPTH]
    if positives == "each":
        known = result.ids[:-1].tolist()
        in_pool = set(known)
        count = np.array([len(in_pool.intersection(query.positives)) for query in result.queries])
        found = {f"R@{k}": relevant[:, :k].sum(1) / count for k in (1, 5, 10)}
        return found | {"MRR@10": (relevant / np.arange(1, relevant.shape[1] + 1)).sum(1) / count}
    if positives == "first":
        wanted = np.array([query.positives[0] for query in result.queries], dtype=object)
        relevant = result.ids[result.ranked[:, : metrics.DEPTH]] == wanted[:, None]
    ranks = metrics.best_ranks(relevant)
    found = {f"R@{k}": metrics.recall_at(ranks, k) for k in (1, 5, 10)}
    return found | {"MRR@10": metrics.reciprocal_rank(ranks)}


def _summed_up(
    facts: Mapping[str, Any],
    shop: Dataset,
    ways: Sequence[Way],
    options: Mapping[str, tuple],
    rankings: Path,
) -> Reproduction:
    values = dict(_measured(shop, ways, options, rankings))
    rows = []
    for way, found in values.items():
        row = dict(zip(CHOICES, way, strict=True)) | {"queries": len(found["R@1"])}
        for name in MEASURED:
            own = metrics.estimate(found[name])
            row |= {name: own.mean, f"{name} low": own.low, f"{name} high": own.high}
        rows.append(row)
    result = read_ranking(_file(rankings, *ways[0]), shop, options["references"][0], facts["model"]["model"])
    skipped: dict[str, None] = {}
    for way in ways:
        with np.load(_file(rankings, *way), allow_pickle=False) as arrays:
            skipped |= dict.fromkeys(map(str, arrays["skipped"]))
    return Reproduction(facts, pd.DataFrame(rows), _differences(values, options), result, tuple(skipped))


def _measured(
    shop: Dataset, ways: Sequence[Way], options: Mapping[str, tuple], rankings: Path
) -> Iterator[tuple[tuple, Values]]:
    """Every cell's values over the queries that all cells have, by its choices in the order of CHOICES."""
    places = []
    for way in ways:
        with np.load(_file(rankings, *way), allow_pickle=False) as arrays:
            places.append(arrays["queries"])
    common = places[0]
    for own in places[1:]:
        common = np.intersect1d(common, own)
    for references, (way, own) in product(options["references"], zip(ways, places, strict=True)):
        dtype, pixels, wording, input = way
        result = read_ranking(_file(rankings, *way), shop, references)
        kept = np.isin(own, common)
        for positives in options["positives"]:
            found = {name: value[kept] for name, value in values_of(result, positives).items()}
            yield (references, pixels, wording, input, dtype, positives), found


def _differences(values: Mapping[tuple, Values], options: Mapping[str, tuple]) -> pd.DataFrame:
    """R@1 of the card's cell with one choice changed, less the card's own, on the same queries; and the range
    of this difference over the other choices.
    """
    card = tuple(options[name][0] for name in CHOICES)
    rows: list[dict[str, Any]] = []
    for place, name in enumerate(CHOICES):
        for other in options[name][1:]:

            def changed(way: tuple, place: int = place, other: Any = other) -> tuple:
                return (*way[:place], other, *way[place + 1 :])

            found = metrics.paired_difference(values[changed(card)]["R@1"], values[card]["R@1"])
            starts = [way for way in values if way[place] == card[place] and changed(way) in values]
            means = [float((values[changed(way)]["R@1"] - values[way]["R@1"]).mean()) for way in starts]
            own: dict[str, Any] = {"choice": name, "card's": str(card[place]), "instead": str(other)}
            own |= {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
            rows.append(own | {"least": min(means), "most": max(means)})
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(**{"p (Holm)": metrics.holm(table["p"].to_numpy(float))})


COLUMNS = ["choice", "card's", "instead", "difference", "low", "high", "p", "least", "most"]
