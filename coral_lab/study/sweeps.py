"""What becomes of the rankings of edited queries, and what a single condition adds to a score."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float32

from coral_lab.encoder import UNKEPT, Encoded, encode_all, progress_bar
from coral_lab.metrics import DEPTH
from coral_lab.prompts import Format, format_name
from coral_lab.query import Query
from coral_lab.retrieval import Index, ranking
from coral_lab.study.edits import AS_ASKED, Edit, Edited, dropped, identity


def sweep(
    index: Index,
    queries: Iterable[Query],
    edits: Edit | Sequence[Edit] = (),
    *,
    formats: Mapping[str, str | Format] | None = None,
    k: int = DEPTH,
) -> pd.DataFrame:
    """Rank the pool for every edited query: one row for each query, edit and format, the query as asked
    first.

    `formats` are by name, by default the index's own alone; its settings say whether embeddings are kept.
    Positives are those of the query before it was edited. Columns: query (the parent's id), edit, format,
    conditions (how many), rank (of the best positive, in the whole pool; 0 if it has none), score (that
    positive's), top (the first hit's score), spread (score of the first less that of the k-th hit), first
    (the first hit's id), edited (the edited query, whose `parent` is the one asked), and, against the same
    query as asked in the same format: overlap (share of the `k` first hits kept), rank_shift (of the
    positive; above 0 it fell), flipped (whether R@1 changed).

    The edits of a query are read in one batch, so that each of their pictures is looked at once a format.
    References stay out of all rankings of their query unless they are positives. Where the index's settings
    skip what cannot be used, such edits have no row, nor has any of a query that cannot be used as asked;
    `attrs["skipped"]` of the table says which and why.
    """
    edits = [edits] if callable(edits) else list(edits)
    formats = formats or {format_name(index.format): index.format}
    settings = index.settings
    groups = _groups([list(_edits(query, edits)) for query in queries], settings.batch_size)
    count = len(groups) * len(formats)
    tables, skipped = [], []
    with progress_bar(
        settings.progress if settings.progress is not None else count >= 8,
        total=count,
        desc="sweep",
        unit="batch",
    ) as bar:
        for name, format in formats.items():
            for group in groups:
                own = replace(settings, batch_size=max(len(group), 1), progress=False)
                found = encode_all(index.model, [edited for _, edited in group], format, own)
                kept = _kept(group, found)
                skipped += [str(error) for _, error in found.skipped]
                if kept:
                    some = [group[i] for i in kept]
                    tables.append(_table(index, some, found.embeddings[kept], k).assign(format=name))
                bar.update()
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    table.attrs["skipped"] = skipped
    return table


def _kept(group: Sequence[Edited], found: Encoded) -> list[int]:
    """Places of the edits that can be compared: they were read, and so was their query as asked before
    them.
    """
    gone = {i for i, _ in found.skipped}
    kept, asked = [], False
    for i, (name, _) in enumerate(group):
        asked = i not in gone if name == AS_ASKED else asked
        if asked and i not in gone:
            kept.append(i)
    return kept


def _edits(query: Query, edits: Sequence[Edit]) -> Iterator[Edited]:
    yield from identity(query)
    for edit in edits:
        for name, edited in edit(query):
            yield name, replace(edited, parent=query)


def _groups(families: Sequence[list[Edited]], size: int) -> list[list[Edited]]:
    """Whole families of edits together, about `size` edits a group."""
    groups: list[list[Edited]] = []
    for family in families:
        if groups and len(groups[-1]) + len(family) <= size:
            groups[-1] += family
        else:
            groups.append(list(family))
    return groups


def _table(
    index: Index, edits: Sequence[Edited], embeddings: Float32[np.ndarray, "edit dim"], k: int
) -> pd.DataFrame:
    parents = [edited.parent or edited for _, edited in edits]
    scores, found = ranking(parents, embeddings, index, k)  # a parent's references stay out, dropped or not
    records, asked = [], {}
    for (name, edited), parent, embedding, own, hits in zip(
        edits, parents, embeddings, scores, found, strict=True
    ):
        rank, score = _best_positive(index, parent, embedding)
        if name == AS_ASKED:
            asked[parent.id] = (rank, set(hits.tolist()))
        before, kept = asked[parent.id]
        records.append(
            {
                "query": parent.id,
                "edit": name,
                "conditions": len(edited.conditions),
                "rank": rank,
                "score": score,
                "top": own[0],
                "spread": own[0] - own[-1],
                "first": index.products[hits[0]].id,
                "overlap": len(kept & set(hits.tolist())) / len(hits),
                "rank_shift": rank - before,
                "flipped": (rank == 1) != (before == 1),
                "edited": edited,
            }
        )
    return pd.DataFrame(records)


def _best_positive(index: Index, query: Query, embedding: Float32[np.ndarray, " dim"]) -> tuple[int, float]:
    """Rank in the whole pool and score of the best-placed positive; ties go to the lower row. 0 and NaN
    without one.
    """
    places = [index.row_of[id] for id in query.positives if id in index.row_of]
    if not places:
        return 0, float("nan")
    scores = index.embeddings @ embedding
    best = min(places, key=lambda place: (-scores[place], place))
    return _rank(index, query, scores, best), float(scores[best])


def _rank(index: Index, query: Query, scores: Float32[np.ndarray, " product"], place: int) -> int:
    """Rank from 1 of one product, the query's references left out; ties go to the lower row."""
    ahead = (scores > scores[place]) | ((scores == scores[place]) & (np.arange(len(scores)) < place))
    ahead[
        [index.row_of[p.id] for p in query.references if p.id in index.row_of and p.id not in query.positives]
    ] = False
    return int(ahead.sum()) + 1


def attribution(
    index: Index,
    query: Query,
    k: int = DEPTH,
    *,
    how: Edit = dropped,
    format: str | Format | None = None,
) -> pd.DataFrame:
    """For each of the `k` first hits and each condition: how score and rank move when that condition is taken
    away.

    `how` takes it away: `dropped` leaves it out, `neutralised` empties its reference. Columns: rank, id,
    condition, attribute, value, met (does the hit have it), score_drop (score as asked less score without:
    what the condition adds), rank_without. A condition that adds as much to hits that do not meet it as to
    those that do is ignored; `heeded` measures that. `format` is the index's own by default. Raises
    ValueError for a `how` that does not give one edit a condition.
    """
    hits = index.search(query, k, format=format)
    items = [edited for _, edited in taken_away(query, how)]
    scores = index.encode(items, format) @ index.embeddings.T
    records = []
    for hit in hits:
        place = index.row_of[hit.product.id]
        for i, condition in enumerate(query.conditions):
            records.append(
                {
                    "rank": hit.rank,
                    "id": hit.product.id,
                    "condition": i,
                    "attribute": condition.attribute,
                    "value": condition.value,
                    "met": condition.met_by(hit.product),
                    "score_drop": float(scores[0, place] - scores[i + 1, place]),
                    "rank_without": _rank(index, query, scores[i + 1], place),
                }
            )
    return pd.DataFrame(records)


def heeded(
    index: Index, queries: Iterable[Query], *, how: Edit = dropped, format: str | Format | None = None
) -> pd.DataFrame:
    """Which conditions a model listens to: one row for each query and condition.

    A condition that is heeded adds more to products that meet it than to those that do not. Columns: query,
    condition (its place from 0), attribute, gain (mean of what it adds to the scores of products of the
    wanted class that meet it, less that of those that do not; 0 for a condition that is ignored, NaN where no
    word says what is wanted), rank_shift (of the best positive when it is taken away). `how` and `format` are
    those of `attribution`. Where the index's settings skip what cannot be used, such queries have no row and
    `attrs["skipped"]` says which and why.
    """
    groups = _groups([taken_away(query, how) for query in queries], 32)
    records: list[dict] = []
    skipped: list[str] = []
    for edits in progress_bar(len(groups) >= 8, groups, desc="heeded", unit="batch"):
        items = [edited for _, edited in edits]
        together = replace(UNKEPT, batch_size=max(len(items), 1), on_error=index.settings.on_error)
        found = encode_all(index.model, items, format or index.format, together)
        skipped += [str(error) for _, error in found.skipped]
        scores = found.embeddings @ index.embeddings.T
        for start, (name, query) in enumerate(edits):
            rows = range(start, start + 1 + len(query.conditions))
            if name == AS_ASKED and not any(i in rows for i, _ in found.skipped):
                records += heard(index, query, scores[rows.start : rows.stop])
    table = pd.DataFrame(records)
    table.attrs["skipped"] = skipped
    return table


def heard(index: Index, query: Query, scores: Float32[np.ndarray, "edit product"]) -> Iterator[dict]:
    """`heeded`'s rows of one query, from the scores of what `taken_away` gives."""
    right = [row for row, p in enumerate(index.products) if p.class_name == query.class_name]
    before = _best_rank(index, query, scores[0])
    for i, condition in enumerate(query.conditions):
        met = np.array([condition.met_by(index.products[row]) for row in right], object)
        added = scores[0, right] - scores[i + 1, right]
        yes, no = added[met == True], added[met == False]  # noqa: E712  None is neither
        yield {
            "query": query.id,
            "condition": i,
            "attribute": condition.attribute,
            "gain": float(yes.mean() - no.mean()) if len(yes) and len(no) else float("nan"),
            "rank_shift": _best_rank(index, query, scores[i + 1]) - before,
        }


def _best_rank(index: Index, query: Query, scores: Float32[np.ndarray, " product"]) -> int:
    places = [index.row_of[id] for id in query.positives if id in index.row_of]
    return min((_rank(index, query, scores, place) for place in places), default=0)


def taken_away(query: Query, how: Edit) -> list[Edited]:
    """The query as asked, then without each of its conditions. Raises ValueError for a `how` that does not
    give one edit a condition.
    """
    edits = list(how(query))
    if len(edits) != len(query.conditions):
        raise ValueError(
            f"query {query.id!r} has {len(query.conditions)} conditions and {len(edits)} edits that take one "
            "away; use dropped, neutralised, or one that gives an edit for each"
        )
    return [(AS_ASKED, query), *edits]
