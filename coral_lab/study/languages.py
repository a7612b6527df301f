"""Every product five times, its title in each language: does a model prefer a language, is exposure fair, can
the language be read off, and what becomes of retrieval without it?

Each query is asked once in each language (its references' titles, not the sentence), so that a language that
is found more often, whoever asks, does not pass for a preference: blind to language, the share of first
hits in the query's own language is 1 / languages, whatever else the model does. The unit of every interval is
the query, all its askings together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int64

from coral_lab.encoder import Settings, encode
from coral_lab.errors import ItemError
from coral_lab.metrics import (
    DEPTH,
    Estimate,
    crossed_change,
    detectable_difference,
    estimate,
    paired_difference,
)
from coral_lab.models.protocol import Embedder
from coral_lab.query import Dataset, name_of
from coral_lab.study.comparison import change
from coral_lab.study.edits import apply, retitled
from coral_lab.study.erasure import Eraser, leace
from coral_lab.study.probing import FEWEST, probe

TOP = 5
BLOCK = 256
"""Queries that are ranked at once, so that memory has a bound."""
ERASED = ("language", "other labels")
"""What can be taken out: the language or, as a control, what tells as many labels dealt out anew."""


@dataclass(frozen=True, eq=False)
class Parallel:
    """Products and queries embedded with their titles in each of `languages`, L2-normalised.

    `right` are a query's positives, `left_out` its references, which stay out of its ranking in every
    language unless they are positives. `classes` are the products' own.
    """

    languages: tuple[str, ...]
    products: Float32[np.ndarray, "language product dim"]
    queries: Float32[np.ndarray, "language query dim"]
    right: Bool[np.ndarray, "query product"]
    left_out: Bool[np.ndarray, "query product"]
    classes: Sequence[str]


def parallel(model: Embedder, shop: Dataset, settings: Settings = Settings()) -> Parallel:
    """All products and queries of a dataset with parallel titles, in all its languages.

    The titles of one product are read one after the other, so that its picture is looked at once. Raises
    NotShownError without queries or parallel titles, ItemError for a query without a positive in the pool,
    ValueError for settings that skip, which would leave a product without one of its titles.
    """
    shop.having("queries", "parallel titles")
    if settings.on_error != "raise":
        raise ValueError("on_error is 'skip'; use 'raise', for every title of a product is needed")
    retitle, languages = shop.traits.retitle, shop.traits.languages
    assert retitle is not None  # which `having` has seen to
    right = _marks(shop, [query.positives for query in shop.queries])
    references = _marks(shop, [[product.id for product in query.references] for query in shop.queries])
    for query, own in zip(shop.queries, right, strict=True):
        if not own.any():
            problem = f"none of its {len(query.positives)} positives is in the pool; check the split"
            raise ItemError(name_of(query), problem)
    titled = [retitle(p, language) for p in shop.products for language in languages]
    rows = encode(model, titled, settings=settings).reshape(len(shop.products), len(languages), -1)
    asked = [
        encode(model, apply(retitled(shop.traits, own), shop.queries), settings=settings) for own in languages
    ]
    classes = [product.class_name for product in shop.products]
    by_language = np.ascontiguousarray(rows.swapaxes(0, 1))
    return Parallel(tuple(languages), by_language, np.stack(asked), right, references & ~right, classes)


def _marks(shop: Dataset, ids: Sequence[Sequence[str]]) -> Bool[np.ndarray, "query product"]:
    row_of = {product.id: row for row, product in enumerate(shop.products)}
    found = np.zeros((len(ids), len(shop.products)), bool)
    for marks, own in zip(found, ids, strict=True):
        marks[[row_of[id] for id in own if id in row_of]] = True
    return found


def found(own: Parallel, k: int = DEPTH) -> Int64[np.ndarray, "language query k"]:
    """The `k` best of each query asked in each language, among all products in all languages: the title
    `row // products` of product `row % products`. Ties go to the lower row.
    """
    count = own.products.shape[1]
    most = len(own.languages) * int((~own.left_out).sum(1).min(initial=count))
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}; give 1 to {most}, what is left of the pool without references")
    pool = own.products.reshape(-1, own.products.shape[2])
    gone = np.tile(own.left_out, len(own.languages))
    ranked = []
    for asked in own.queries:
        parts = np.array_split(np.arange(len(asked)), -(-len(asked) // BLOCK) or 1)
        scores = (np.where(gone[some], -np.inf, asked[some] @ pool.T) for some in parts)
        ranked.append(np.concatenate([np.argsort(-few, axis=1, kind="stable")[:, :k] for few in scores]))
    return np.stack(ranked)


def by_query(own: Parallel) -> pd.DataFrame:
    """What each query finds, over its askings in all languages: one row a query.

    Columns: R@1 (the first hit is right, in whatever language), own first and own top 5 (share of the first
    hit, and of the first five, that are in the language asked in), and exposure LANGUAGE (its share of the
    first ten places, each worth 1 / log2(1 + rank) as in nDCG; Singh and Joachims 2018, 1802.07281).
    """
    hits, count = found(own), own.products.shape[1]
    titles, rows = np.divmod(hits, count)
    first = np.take_along_axis(np.tile(own.right, (len(titles), 1, 1)), rows[..., :1], 2)
    same = titles == np.arange(len(titles))[:, None, None]
    worth = 1 / np.log2(np.arange(2, hits.shape[2] + 2))
    columns = {
        "R@1": first[..., 0].mean(0),
        "own first": same[..., 0].mean(0),
        "own top 5": same[..., :TOP].mean((0, 2)),
    }
    for place, language in enumerate(own.languages):
        columns[f"exposure {language}"] = ((titles == place) * worth).sum(2).mean(0) / worth.sum()
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class Exposure:
    """How evenly languages are shown: the `least` and `most` shown, their `ratio` with its interval over
    queries, and `p` that chance deals them so unevenly.
    """

    least: str
    most: str
    ratio: Estimate
    p: float


def exposure(shares: pd.DataFrame, permutations: int = 2000, seed: int = 0) -> Exposure:
    """Worst to best of the languages' mean shares, a row a query and a column a language.

    The ratio is below 1 by chance alone, so its interval, for these two languages, is no test of fairness:
    `p` is, from as many deals of each query's shares to the languages anew. Raises ValueError for no queries
    or fewer than two languages.
    """
    values = shares.to_numpy(float)
    if len(values) == 0 or values.shape[1] < 2:
        raise ValueError(
            f"shares are of shape {values.shape}; give one query or more, and two languages or more"
        )
    means, random = values.mean(0), np.random.default_rng(seed)
    worst, best = int(means.argmin()), int(means.argmax())
    dealt = np.array([random.permuted(values, axis=1).mean(0) for _ in range(permutations)])
    ratio = means[worst] / means[best]
    by_chance = dealt.min(1) / dealt.max(1)
    p = (1 + (by_chance <= ratio + 1e-12).sum()) / (1 + permutations)
    less = crossed_change(values[:, [worst]], values[:, [best]])
    interval = Estimate(float(ratio), 1 + less.low, 1 + less.high, len(values))
    return Exposure(str(shares.columns[worst]), str(shares.columns[best]), interval, float(p))


def titles_apart(own: Parallel) -> tuple[Float[np.ndarray, " product"], Float[np.ndarray, " product"]]:
    """For each product, the mean cosine distance of its own titles, two by two, and of it to the other
    products of its class in the same language; NaN for the only one of a class.
    """
    count = len(own.languages)
    sums = own.products.sum(0, dtype=np.float64)
    within = 1 - ((sums**2).sum(1) - count) / (count * (count - 1))
    others = np.full(own.products.shape[1], np.nan)
    names = np.asarray(own.classes, object)
    for name in sorted(set(own.classes)):
        (rows,) = np.nonzero(names == name)
        if len(rows) > 1:
            some = own.products[:, rows].astype(np.float64)
            cosines = np.einsum("lpd,ld->lp", some, some.sum(1)) - 1
            others[rows] = 1 - cosines.mean(0) / (len(rows) - 1)
    return within, others


def erased(own: Parallel, what: str = "language", seed: int = 0) -> Parallel:
    """Products and queries without their language: `leace` fitted on all products, applied to both, and
    L2-normalised again. "other labels" are the control, languages dealt out anew to each product's titles.
    """
    if what not in ERASED:
        raise ValueError(f"what is {what!r}; use one of {', '.join(ERASED)}")
    labels = _labels(own, own.products.shape[1])
    if what == "other labels":
        labels = np.random.default_rng(seed).permuted(labels, axis=0)
    eraser = leace(_flat(own.products), labels.ravel().tolist())
    products, queries = (_erase(eraser, rows) for rows in (own.products, own.queries))
    return replace(own, products=products, queries=queries)


def _labels(own: Parallel, count: int) -> np.ndarray:
    return np.repeat(np.array(own.languages)[:, None], count, 1)


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, rows.shape[-1])


def _erase(eraser: Eraser, rows: np.ndarray) -> np.ndarray:
    return eraser.normalised(_flat(rows)).reshape(rows.shape)


def read_off(own: Parallel, *, within: bool = False, bare: bool = False, seed: int = 0) -> Estimate:
    """How often a linear probe tells a title's language, for products that it has not seen.

    A third of the products is there to fit the eraser where `bare`, a third trains the probe, and of each of
    the others one title is told, so that rows are independent. `within` takes each product's mean away
    first, which leaves what its titles do not have in common. Chance is 1 / languages; after erasing a
    little more is read, for the eraser knows the means from other products only. Raises ValueError for fewer
    than 120 products.
    """
    count = own.products.shape[1]
    parts = np.array_split(np.random.default_rng(seed).permutation(count), 3)
    if min(map(len, parts)) < FEWEST:
        raise ValueError(f"{count} products are too few for a probe; give {3 * FEWEST} or more")
    rows = own.products
    if bare:
        eraser = leace(_flat(rows[:, parts[0]]), _labels(own, len(parts[0])).ravel().tolist())
        rows = _erase(eraser, rows)
    if within:
        rows = rows - rows.mean(0)
    told = np.arange(len(parts[2])) % len(own.languages)
    names = [{"language": name} for name in _labels(own, len(parts[1])).ravel().tolist()]
    new = [{"language": own.languages[place]} for place in told]
    table = probe(_flat(rows[:, parts[1]]), names, rows[told, parts[2]], new)
    accuracy, low, high = (float(table[key].iloc[0]) for key in ("accuracy", "low", "high"))
    return Estimate(accuracy, low, high, len(new))


def measured(own: Parallel, without: str = "") -> tuple[dict[str, float | str], pd.DataFrame]:
    """`figures` and the table `by_query`, of the embeddings as they are or `without` one of ERASED."""
    plain = by_query(own)
    if not without:
        return figures(own, plain), plain
    bare = erased(own, without)
    table = by_query(bare)
    return figures(bare, table, plain), table


def figures(own: Parallel, table: pd.DataFrame, plain: pd.DataFrame | None = None) -> dict[str, float | str]:
    """A row about languages: `table` is `by_query` of `own`, and `plain` that of the same before anything was
    taken out.

    Without `plain`: how far titles lie apart, and what is read off before and after erasing. With it: what
    changed, paired by query, and the smallest difference that so many queries find 8 times of 10.
    """
    even = np.full(len(table), 1 / len(own.languages))
    row: dict[str, float | str] = {}
    for name in ("R@1", "own first", "own top 5"):
        row |= _told(name, estimate(table[name].to_numpy()))
        if name != "R@1":
            row[f"{name} p"] = paired_difference(table[name].to_numpy(), even).p
    shares = table.filter(like="exposure ").rename(columns=lambda name: name.removeprefix("exposure "))
    row |= {f"exposure {name}": shares[name].mean() for name in shares}
    shown = exposure(shares)
    row |= {"exposure least": shown.least, "exposure most": shown.most}
    row |= _told("exposure ratio", shown.ratio) | {"exposure p": shown.p}
    if plain is None:
        return row | _space(own)
    for name in ("R@1", "own first"):
        before, after = plain[name].to_numpy(), table[name].to_numpy()
        row |= change(after, before, name)
        row[f"{name} detectable"] = detectable_difference(float((after - before).std(ddof=1)), len(after))
    return row


def _space(own: Parallel) -> dict[str, float | str]:
    """Distances of titles, and what a probe reads off: facts of the embeddings as they are."""
    within, others = titles_apart(own)
    row = _told("titles apart", estimate(within))
    known = np.isfinite(others)
    if known.any():
        ratio = crossed_change(within[known, None], others[known, None])
        row |= {"products apart": float(others[known].mean()), "titles to products": 1 + ratio.mean}
        row |= {"titles to products low": 1 + ratio.low, "titles to products high": 1 + ratio.high}
    for bare in (False, True):
        for inside in (False, True):
            name = f"language read{' within' if inside else ''}{' erased' if bare else ''}"
            row |= _told(name, read_off(own, within=inside, bare=bare))
    return row


def _told(name: str, found: Estimate) -> dict[str, float | str]:
    return {name: float(found.mean), f"{name} low": float(found.low), f"{name} high": float(found.high)}
