"""How a comparison of models shows itself: tables, figures, the gallery of what one gets and another does
not, and the page that `coral-lab compare` writes.
"""

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from coral_lab.errors import one_line
from coral_lab.evaluation import Result
from coral_lab.metrics import Estimate
from coral_lab.replication.cells import provenance
from coral_lab.replication.comparing_cost import TIMED
from coral_lab.replication.report_page import BREAKDOWNS, DRAW, TABLE_STYLE, figure_of, left_out, table_of
from coral_lab.results import PLAIN, flow, grey, hits, page, paragraph, query_html
from coral_lab.sources.files import csv_text, output_folder, write_text
from coral_lab.study.plots import PALETTE, SYMBOLS, TEMPLATE, bars, differences, matrix, plain

if TYPE_CHECKING:
    from coral_lab.replication.comparing import Comparison, Differing

PAGE, FACTS, RANKS = "compare.html", "comparison.json", "ranks.csv"

SHOWN = 2
"""Queries of each gallery of the page."""

TIMING = (
    f"Milliseconds an item are of the first {TIMED} products and queries, encoded apart with no store, the "
    "quicker of two runs; loading does not count, and vectors that are looked up are not timed. Peak memory "
    "is torch's on a CUDA device; on others it is not measured."
)
TESTING = (
    "On the same queries: the difference in R@1 with its 95% interval, p of a paired permutation test, "
    "corrected by Holm's method, and in how many queries the first model does better, worse and as well."
)
UNJUDGED = (
    "An unjudged hit counts as wrong: where judged@10 is below 1, R@k, MRR@10 and nDCG@10 say what is known, "
    "not what would be found, and favour models whose hits were judged; condensed nDCG@10 leaves unjudged "
    "hits out."
)


def quality(found: "Comparison") -> pd.DataFrame:
    """Each model's metrics with their intervals, as texts."""
    rows = {name: {m: str(v) for m, v in result.metrics.items()} for name, result in found.results.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(found.names)).rename_axis("model")


def costs(found: "Comparison") -> pd.DataFrame:
    """Each model's cost in readable units, as texts."""
    rows = {}
    for name, cost in found.costs.items():
        row = cost.row()
        rows[name] = {
            "dimensions": f"{cost.dim:,}",
            "an embedding": _bytes(cost.embedding_bytes),
            "ms a product": _number(row["ms a product"]),
            "ms a query": _number(row["ms a query"]),
            "parameters": "–" if cost.parameters is None else f"{cost.parameters / 1e6:,.1f} M",
            "weights": _bytes(cost.weight_bytes),
            "peak memory": _bytes(cost.peak_bytes),
            "as": " ".join(filter(None, (cost.dtype, cost.device))) or "–",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return "–"
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:,.0f} {units[0]}" if units[0] == "bytes" or size >= 100 else f"{size:.1f} {units[0]}"


def paired(found: "Comparison", baseline: str | None = None) -> pd.DataFrame:
    """The tests of R@1 as texts."""
    return pd.DataFrame(
        {
            "models": f"{row['model']} − {row['against']}",
            "R@1": f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            "p (Holm)": "< 0.001" if row["p (Holm)"] < 0.001 else f"{row['p (Holm)']:.3f}",
            "better": f"{row['wins']:,}",
            "worse": f"{row['losses']:,}",
            "as well": f"{row['ties']:,}",
        }
        for row in found.tests(baseline=baseline).to_dict("records")
    )


def measured_on(found: "Comparison") -> str:
    data = found.facts["data"]
    left = f"; {len(found.skipped):,} left out for all" if found.skipped else ""
    return (
        f"{data['name']}: {data['queries']:,} queries over {data['products']:,} products, format "
        f"{found.facts['format']}, 95% intervals{left}"
    )


def as_text(found: "Comparison") -> str:
    """For a terminal."""
    head = one_line(f"{len(found.results)} models on {measured_on(found)}")
    tables = [
        table.rename(index=one_line).rename_axis(None).to_string() for table in (quality(found), costs(found))
    ]
    tables += [UNJUDGED] if _is_judged(found) else []
    return "\n\n".join([head, *tables, "R@1 on the same queries:", paired_text(found)])


def _is_judged(found: "Comparison") -> bool:
    return "judged@10" in found.names


def _quality(found: "Comparison") -> str:
    note = paragraph(grey(UNJUDGED)) if _is_judged(found) else ""
    return paragraph(grey(measured_on(found))) + _escaped(quality(found)) + note


def paired_text(found: "Comparison", baseline: str | None = None) -> str:
    table = paired(found, baseline)
    return table.assign(models=table["models"].map(one_line)).to_string(index=False)


def summary(found: "Comparison") -> str:
    """For a notebook."""
    return _quality(found) + _escaped(paired(found), index=False) + _escaped(costs(found))


def _escaped(table: pd.DataFrame, index: bool = True) -> str:
    """No dollar signs in names are taken for a formula by a notebook."""
    shown = table_of(table.rename_axis(None), index)
    return f'<div class="{PLAIN}" style="overflow-x:auto">{shown}</div>'


def quality_figure(found: "Comparison", metric: str) -> go.Figure:
    count = found.facts["data"]["queries"]
    values = {name: result.metrics[metric] for name, result in found.results.items()}
    return bars(values, f"{metric} of each model, {count:,} queries, 95% intervals", metric)


def breakdown_figure(found: "Comparison", group: str, metric: str) -> go.Figure:
    table = found.by(group, metric).xs(metric, axis=1, level=1)
    names = [f"{value} ({count:,})" for value, count in table.index]
    shown = table.set_axis(pd.Index(names, name=group)).rename_axis(columns="")
    figure = matrix(shown, f"{metric} by {group} (queries)", metric)
    figure.update_traces(zmin=0, zmax=1)  # one scale for all: of its own it shades one query's difference
    return figure.update_yaxes(title=None)  # the title has it, and here it would lie on the labels


def cost_figure(found: "Comparison", metric: str) -> go.Figure:
    """Models as points: what a query takes, and what it gets; without those that were not timed."""
    figure = go.Figure()
    for number, (name, result) in enumerate(found.results.items()):
        value, row = result.metrics[metric], found.costs[name].row()
        if row["ms a query"] is None:
            continue
        figure.add_scatter(
            x=[row["ms a query"]],
            y=[value.mean],
            name=plain(f"{name}, {row['dim']:,} dimensions"),
            mode="markers",
            error_y=_error(value),
            marker={
                "color": PALETTE[number % len(PALETTE)],
                "symbol": SYMBOLS[number // len(PALETTE) % len(SYMBOLS)],
                "size": 11,
            },
            hovertemplate="%{x:.2f} ms a query, %{y:.3f}<extra></extra>",
        )
    figure.update_layout(
        template=TEMPLATE,
        height=360,
        title=plain(f"{metric} against time"),
        margin={"l": 50, "r": 10, "t": 50, "b": 50},
        showlegend=True,
    )
    figure.update_xaxes(title="milliseconds a query", rangemode="tozero")
    figure.update_yaxes(title=metric)
    return figure


def _error(value: Estimate) -> dict[str, Any]:
    bounds = {"array": [value.high - value.mean], "arrayminus": [value.mean - value.low]}
    return {"type": "data", "symmetric": False, **bounds}


def gallery(found: "Differing") -> str:
    """Each query with both first hits."""
    many = f"{len(found):,} of {len(found.mine.queries):,} queries"
    pieces = [paragraph(f"<b>{escape(found.a)}</b> and not <b>{escape(found.b)}</b>: {many}")]
    for place in found.places[: found.count]:
        query = found.mine.queries[place]
        sides = (_side(found.a, found.mine, place), _side(found.b, found.theirs, place))
        pieces.append(query_html(query) + flow(sides))
    return "".join(pieces)


def _side(name: str, result: Result, place: int) -> str:
    """A model's first hit for a query, under its name and the rank of its best right answer."""
    query, rows = result.queries[place], result.ranked[place]
    right = result.relevant[place]
    rank = f"right answer at {right.argmax() + 1}" if right.any() else f"none in {len(rows)}"
    head = f"<div><b>{escape(name)}</b> {grey(rank)}</div>"
    if rows[0] < 0:  # nothing but its own references in the pool
        return f"<div>{head}{grey('nothing found')}</div>"
    first = hits(query, [(result.products[rows[0]], float(result.scores[place, 0]))])
    return f"<div>{head}{first.gallery()}</div>"


def _galleries(found: "Comparison") -> Iterator[str]:
    """The model of the highest R@1 beside each other one, both ways."""
    first = max(found.results, key=lambda name: found.results[name].metrics["R@1"].mean)
    for other in found.results:
        for pair in ((first, other), (other, first)) if other != first else ():
            shown = gallery(found.differing(*pair, count=SHOWN))
            yield f'<div style="margin-top:28px">{shown}</div>'


def _breakdowns(found: "Comparison") -> Iterator[str]:
    for group in BREAKDOWNS:
        yield figure_of(breakdown_figure(found, group, "R@1"))


def _tests(found: "Comparison") -> str:
    table = found.tests()
    named = table.set_axis(table["model"] + " − " + table["against"])
    figure = differences(named, "Differences on the same queries", "difference in R@1")
    return paragraph(grey(TESTING)) + figure_of(figure) + _escaped(paired(found), index=False)


def _body(found: "Comparison", facts: dict[str, Any]) -> str:
    published = paragraph(grey(found.note)) + table_of(found.published(), index=False)
    text = escape(json.dumps(facts, indent=2, ensure_ascii=False))
    sections = {
        "Quality": _quality(found) + figure_of(quality_figure(found, "R@1")),
        "Is it better, or is it chance?": _tests(found),
        "Breakdowns": "".join(_breakdowns(found)),
        "What it costs": paragraph(grey(TIMING))
        + _escaped(costs(found))
        + figure_of(cost_figure(found, "R@1")),
        "What one gets and another does not": "".join(_galleries(found)),
        "What has been published": published,
        "What was left out": left_out([*found.facts["data"]["skipped"], *found.skipped]),
        "Settings in full": f'<pre style="white-space:pre-wrap;font-size:12px">{text}</pre>',
    }
    return "".join(f"<h2>{escape(name)}</h2>{content}" for name, content in sections.items())


def write(found: "Comparison", folder: Path, command: str) -> Path:
    """The page, the figures as JSON, and each query's rank by model; returns the page's place."""
    output_folder(folder)
    facts = {**found.facts, "made with": provenance() | {"command": command}}
    write_text(folder / FACTS, json.dumps(_figures(found, facts), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / RANKS, csv_text(found.ranks.reset_index()))
    title = f"{len(found.results)} models on {found.facts['data']['name']}"
    body = TABLE_STYLE + _body(found, facts)
    write_text(folder / PAGE, page(title, body, (get_plotlyjs(), DRAW)))
    return folder / PAGE


def _figures(found: "Comparison", facts: dict[str, Any]) -> dict[str, Any]:
    """All numbers of a comparison, with what they depend on."""
    measured = {
        name: {
            "metrics": {metric: value.mean for metric, value in result.metrics.items()},
            "intervals": {metric: [value.low, value.high] for metric, value in result.metrics.items()},
            "cost": found.costs[name].row(),
        }
        for name, result in found.results.items()
    }
    tests = found.tests().to_dict("records")
    skipped = [str(error) for error in found.skipped]
    return {**facts, "measured": measured, "tests of R@1": tests, "skipped": skipped}
