"""The page that `coral-lab reproduce` writes: every cell beside the published figures."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from coral_lab.replication.report_page import DRAW, TABLE_STYLE, breakdowns, figure_of, left_out, table_of
from coral_lab.results import grey, page, paragraph
from coral_lab.sources.files import write_text
from coral_lab.sources.package_files import shipped
from coral_lab.study.plots import PALETTE, SYMBOLS, TEMPLATE, differences, plain

if TYPE_CHECKING:
    from coral_lab.replication.reproducing import Reproduction

MEASURED = ("R@1", "R@5", "R@10", "MRR@10")
PUBLISHED = {"the paper": "Coral", "an independent run": "Coral (independent run)"}
"""Rows of `data/published.csv`, both of Bia/CORAL's kind, interleaved, over MERIT's 51,177 test products."""

CHOICES = {
    "references": "A query's own reference products are left out of its ranking, unless they are right "
    "answers, or kept in it.",
    "pixels": "The most pixels that a picture has when it is cut into patches.",
    "wording": "The query in the card's words, or in those of MERIT's own files.",
    "input": "Every picture where it is spoken of (Seq), or all of them pasted into one (Cat).",
    "dtype": "What the network computes in.",
    "positives": "Of several right answers the best placed one counts, as in the authors' metric; or each "
    "for its share; or only the one that is named first.",
}

NOTE = (
    "Published figures are of MERIT's 10,000 queries over 51,177 products; those of this page compare with "
    "them only if they are of these and of the released weights."
)


def published() -> pd.DataFrame:
    """R@1, R@5, R@10, MRR@10 and source, as the paper has them and as somebody else measured them."""
    table = pd.read_csv(shipped("data/published.csv"))
    rows = [
        table[(table["method"] == method) & (table["input"] == "Seq")].iloc[0]
        for method in PUBLISHED.values()
    ]
    return pd.DataFrame(rows, index=list(PUBLISHED))[[*MEASURED, "source"]]


def write_page(found: "Reproduction", out: Path) -> None:
    """One offline page: the card's cell, what each choice makes of it, all cells, breakdowns, settings."""
    title = f"{found.facts['model']['model']} on {found.facts['data']['name']}: the evaluation taken apart"
    sections = {
        "As the card has it": _card(found),
        "What each choice makes of it": _choices(found),
        "Every way to evaluate": _cells(found),
        "Breakdowns, as the card has it": "".join(breakdowns(found.result)),
        "What was left out": left_out([*found.facts["data"]["skipped"], *found.skipped]),
        "Settings in full": _settings(found.facts),
    }
    body = "".join(f"<h2>{escape(name)}</h2>{content}" for name, content in sections.items())
    write_text(out, page(title, TABLE_STYLE + body, (get_plotlyjs(), DRAW)))


def _card(found: "Reproduction") -> str:
    card = found.card
    ours = {
        name: f"{card[name]:.4f} [{card[f'{name} low']:.4f}, {card[f'{name} high']:.4f}]" for name in MEASURED
    }
    rows = {f"here, {card['queries']:,} queries": ours}
    for who, row in published().iterrows():
        rows[f"{who} ({row['source']})"] = {name: f"{row[name]:.4f}" for name in MEASURED}
    way = "; ".join(f"{name}: {card[name]}" for name in found.facts["choices"])
    return paragraph(escape(way)) + table_of(pd.DataFrame(rows).T) + paragraph(grey(NOTE))


def _choices(found: "Reproduction") -> str:
    table = found.differences
    if table.empty:
        return paragraph("No choice was tried another way.")
    said = (
        "R@1 with this one choice made otherwise, less the card's, on the same queries: with its 95% "
        "interval, a paired test's p after Holm's correction, and from least to most what the same change "
        "makes of every cell where it was tried."
    )
    named = table.set_index(table["choice"] + ": " + table["instead"] + ", not " + table["card's"])
    shown = named[["difference", "low", "high", "p (Holm)", "least", "most"]].rename_axis("choice")
    figure = differences(named, "Change of R@1 on the same queries", "change of R@1")
    tried = "".join(
        f"<li><b>{name}</b>: {CHOICES[name]}</li>" for name in CHOICES if name in {*table["choice"]}
    )
    return f"<ul>{tried}</ul>" + paragraph(said) + figure_of(figure) + table_of(shown)


def _cells(found: "Reproduction") -> str:
    cells = found.cells
    names = list(found.facts["choices"])
    shown = cells.sort_values("R@1", ascending=False)[[*names, "queries", *MEASURED]]
    table = f"<details><summary>{len(cells)} cells</summary>{table_of(shown, index=False)}</details>"
    return figure_of(_every_cell(found)) + table


def _every_cell(found: "Reproduction") -> go.Figure:
    """All cells by R@1, coloured by the choice that matters most, beside the published figures."""
    cells = found.cells.sort_values("R@1").reset_index(drop=True)
    strongest = _strongest(found)
    figure = go.Figure()
    for number, (value, own) in enumerate(cells.groupby(strongest, sort=False)):
        texts = [
            plain(", ".join(f"{name} {row[name]}" for name in found.facts["choices"]))
            for row in own.to_dict("records")
        ]
        figure.add_scatter(
            x=own.index + 1,
            y=own["R@1"],
            mode="markers",
            name=plain(f"{strongest}: {value}"),
            text=texts,
            marker={
                "color": PALETTE[number % len(PALETTE)],
                "symbol": SYMBOLS[number % len(SYMBOLS)],
                "size": 8,
            },
            error_y={
                "array": own["R@1 high"] - own["R@1"],
                "arrayminus": own["R@1"] - own["R@1 low"],
                "thickness": 1,
            },
            hovertemplate="%{y:.4f}<br>%{text}<extra></extra>",
        )
    for who, row in published().iterrows():
        line = {"color": "#767676", "dash": "dot", "width": 1}
        text = plain(f"{who}, {row['R@1']:.4f}")
        figure.add_hline(y=row["R@1"], line=line, annotation_text=text, annotation_position="top left")
    figure.update_layout(
        template=TEMPLATE,
        height=460,
        title="R@1 of every way to evaluate, with its 95% interval",
        margin={"l": 60, "r": 10, "t": 50, "b": 90},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
    )
    figure.update_xaxes(title="cells by R@1")
    figure.update_yaxes(title="R@1")
    return figure


def _strongest(found: "Reproduction") -> str:
    table = found.differences
    if table.empty:
        return "references"
    return table.loc[table["difference"].abs().idxmax(), "choice"]


def _settings(facts: Mapping) -> str:
    """All of it, to be laid beside another run's."""
    text = escape(json.dumps(facts, indent=2, ensure_ascii=False))
    return f'<pre style="white-space:pre-wrap;font-size:12px">{text}</pre>'
