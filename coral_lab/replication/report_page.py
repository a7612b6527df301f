"""One offline page about a checkpoint: what a lab would attach to it."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from coral_lab.errors import NotShownError
from coral_lab.evaluation import Result
from coral_lab.metrics import Estimate, estimate
from coral_lab.query import Dataset, Query, Traits
from coral_lab.replication.cells import provenance
from coral_lab.replication.verdicts import findings
from coral_lab.results import grey, page, paragraph
from coral_lab.retrieval import Index
from coral_lab.sources.files import write_text
from coral_lab.sources.package_files import shipped
from coral_lab.study import binding, composition
from coral_lab.study.edits import AS_ASKED, orders
from coral_lab.study.error_analysis import mistakes, worst
from coral_lab.study.plots import bars, matrix
from coral_lab.study.sweeps import sweep

FEW = 10  # queries behind a cell of the language matrix, at least

BREAKDOWNS = ("conditions", "attribute", "language", "class")


def report(
    index: Index, shop: Dataset, out: Path, *, sensitivity: int = 200, galleries: int = 4, command: str = ""
) -> Result:
    """Measure an encoded pool with the queries of `shop` and write the page `out`, which needs no network.

    Order sensitivity is of the first `sensitivity` queries of two to four conditions. Returns the evaluation.
    """
    result = index.evaluate(shop.queries)
    sections = {
        "What was measured": _facts(index, shop, command)
        + left_out([*shop.skipped, *index.skipped, *result.skipped]),
        "Metrics": _metrics(result),
        "Breakdowns": "".join(breakdowns(result)),
        "Language matrix": _languages(result),
        "Order sensitivity": _orders(index, result.queries, sensitivity),
        "What wrong first hits fail": _mistakes(result, galleries, shop.traits),
        "Fusion and binding": _diagnosis(index, result, sensitivity),
        "Beside the paper": _published(result),
        "Findings": _findings(),
        "Queries and their hits": "".join(
            index.search(query, 8)._repr_html_() for query in result.queries[:galleries]
        ),
    }
    body = "".join(f"<h2>{escape(title)}</h2>{content}" for title, content in sections.items())
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page(f"{index.model.name} on {shop.name}", TABLE_STYLE + body, (get_plotlyjs(), DRAW)))
    return result


TABLE_STYLE = (
    "<style>table{border-collapse:collapse;margin:8px 0}td,th{padding:3px 12px 3px 0;text-align:left;"
    "vertical-align:top;border-bottom:1px solid #8884}h2{margin-top:36px}</style>"
)

DRAW = """
for (const place of document.querySelectorAll("div[data-figure]")) {
  const figure = JSON.parse(place.dataset.figure);
  Plotly.newPlot(place, figure.data, figure.layout, {displaylogo: false, responsive: true});
}
"""
"""Draws every figure where it stands."""


def figure_of(figure: go.Figure) -> str:
    """A place for a figure, which DRAW fills."""
    return f'<div data-figure="{escape(figure.to_json(), quote=True)}"></div>'


def table_of(frame: pd.DataFrame, index: bool = True) -> str:
    return frame.to_html(index=index, border=0, float_format="{:.3f}".format, na_rep="")


def left_out(errors: Sequence[object]) -> str:
    """Every product and query that could not be used, and why."""
    if not errors:
        return paragraph("Nothing was left out.")
    rows = "".join(f"<li>{escape(str(error))}</li>" for error in errors)
    return f"<details><summary>{len(errors):,} left out</summary><ul>{rows}</ul></details>"


def _facts(index: Index, shop: Dataset, command: str) -> str:
    made = provenance()
    rows = {
        "model": repr(index.model),
        "data": f"{shop.name}: {len(index.products):,} products, {len(shop.queries):,} queries",
        "code": made["commit"],
        "torch": made["torch"],
        "machine": made["machine"],
        "command": command or "called from Python",
    }
    return (
        "<table>"
        + "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        + "</table>"
    )


def _metrics(result: Result) -> str:
    table = pd.DataFrame(
        {name: {"value [95% interval]": str(value)} for name, value in result.metrics.items()}
    ).T
    note = paragraph(grey(result.note)) if result.note else ""
    return table_of(table) + note + figure_of(bars(result.metrics, unit="over all queries"))


def breakdowns(result: Result) -> Iterator[str]:
    """R@1 with its interval by each of BREAKDOWNS, as figures."""
    for group in BREAKDOWNS:
        found = {
            f"{row['value']} ({row['queries']:,})": Estimate(
                row["R@1"], row["R@1 low"], row["R@1 high"], row["queries"]
            )
            for row in result.by(group).to_dict("records")
        }
        yield figure_of(bars(found, f"R@1 by {group} (queries)", "R@1"))


def _languages(result: Result) -> str:
    """R@1 by the language of the references' titles and of the right answers', where there are queries
    enough.
    """
    products = {product.id: product for product in result.products}
    frame = result.per_query[["language", "R@1"]].copy()
    answers = [
        {products[id].language for id in query.positives if id in products} for query in result.queries
    ]
    frame["answer"] = [languages.pop() if len(languages) == 1 else "several" for languages in answers]
    pairs = frame.groupby(["language", "answer"])["R@1"]
    table = pairs.mean().where(pairs.size() >= FEW).unstack()
    table = table.rename_axis(index="references in", columns="right answers in")
    note = f"A pair of languages with fewer than {FEW} queries is left empty."
    figure = matrix(table, "R@1 by the language of references and of right answers", "R@1")
    return paragraph(grey(note)) + figure_of(figure)


def _orders(index: Index, asked: Sequence[Query], count: int) -> str:
    queries = [query for query in asked if 2 <= len(query.conditions) <= 4][:count]
    if not queries:
        return paragraph("No query has two to four conditions.")
    table = sweep(index, queries, orders)
    table = table[table["edit"] != AS_ASKED]
    by = table.groupby("conditions").agg(
        queries=("query", "nunique"),
        orders=("edit", "nunique"),
        flipped=("flipped", "mean"),
        overlap=("overlap", "mean"),
    )
    by = by.rename(columns={"flipped": "R@1 changed", "overlap": "share of the first ten kept"})
    return paragraph("Every order of the conditions, against the order asked.") + table_of(by)


def _mistakes(result: Result, count: int, traits: Traits) -> str:
    table = mistakes(result, traits)
    if table.empty:
        return paragraph("Every first hit is right.")
    shares = {
        kind: estimate((table["kind"] == kind).to_numpy(float)) for kind in table["kind"].value_counts().index
    }
    others = {
        name.replace("_", " "): table[name].mean()
        for name in ("other_language", "like_reference", "near_duplicate")
    }
    said = "; ".join(f"{name} {share:.1%}" for name, share in others.items())
    figure = bars(shares, f"{len(table):,} wrong first hits of {len(result.queries):,}", "share")
    seen = f" Visual: {', '.join(traits.visual)}." if traits.visual else ""
    return figure_of(figure) + paragraph(escape(f"Of these: {said}.{seen}")) + worst(result, table, count)


def _diagnosis(index: Index, result: Result, count: int) -> str:
    """The fusion gap of the first queries of two or more conditions; whose value wrong first hits have."""
    try:
        asked = composition.several(result.queries)[:count]
        gap = composition.composed(index, asked, (composition.INTERLEAVED, composition.MEAN))
        said = paragraph(escape(composition.in_words(gap)))
        rows = binding.whose_value(result)
    except NotShownError as error:
        return paragraph(escape(str(error)))
    tables = [binding.taken(rows, by) for by in ("all", "attribute")]
    return said + paragraph(escape(binding.in_words(rows))) + table_of(pd.concat(tables), index=False)


def _published(result: Result) -> str:
    published = pd.read_csv(shipped("data/published.csv"))
    columns = ["R@1", "R@5", "R@10", "MRR@10"]
    ours = pd.DataFrame(
        [{"method": f"this report: {result.model}", **{name: result.metrics[name].mean for name in columns}}]
    )
    note = (
        "The paper's rows are of MERIT's 51,177 products; ours compare with them only if this report is of "
        "these too."
    )
    return paragraph(grey(note)) + table_of(pd.concat([ours, published]), index=False)


def _findings() -> str:
    try:
        table = findings()
    except FileNotFoundError as error:
        return paragraph(escape(str(error)))
    note = "From the shipped checkpoints and experiments (data/results), not from this report's model."
    return paragraph(grey(note)) + table_of(
        table[
            ["number", "finding", "measure", "published", "ours", "low", "high", "p (Holm)", "verdict", "why"]
        ],
        index=False,
    )
