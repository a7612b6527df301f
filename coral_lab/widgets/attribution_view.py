"""The attribution view: what each condition of a query adds to the score of each hit, beside the hits'
pictures.
"""

from collections.abc import Mapping
from html import escape
from types import MappingProxyType

import ipywidgets as widgets
import numpy as np
import pandas as pd

from coral_lab.prompts import Format
from coral_lab.query import Query
from coral_lab.results import FRAME, PLAIN, grey, product_img
from coral_lab.retrieval import Index
from coral_lab.study.edits import Edit, dropped, neutralised
from coral_lab.study.plots import matrix
from coral_lab.study.sweeps import attribution
from coral_lab.widgets.parts import LABELLED, Frozen, Message

HOW: Mapping[str, Edit] = MappingProxyType({"leaving it out": dropped, "emptying its reference": neutralised})
"""Ways to take a condition away, by name; a function of one's own goes in beside them."""

MARKS = {True: "✓", False: "✗"}
SAMPLE = 300  # products whose scores say how far apart scores are
BLUE, ORANGE = "0,114,178", "213,94,0"  # the first two of plots.PALETTE, to be made transparent


class AttributionView(widgets.VBox):
    """The `k` first hits of a query, and per condition a heat map of what it adds: a table with pictures.

    A cell holds the score as asked less the score without that condition, whether the hit meets it, and the
    rank that it would have without. Colours are full at `reach`, whatever the query. `table` is
    `sweeps.attribution`'s; `static()` the same as a figure and HTML. Errors are those of `attribution`.
    """

    def __init__(
        self,
        index: Index,
        query: Query,
        k: int = 8,
        *,
        how: Mapping[str, Edit] = HOW,
        format: str | Format | None = None,
    ):
        self.index, self.query, self.k, self.how, self.format = index, query, k, dict(how), format
        self.way = widgets.Dropdown(
            options=list(self.how),
            description="Take a condition away by",
            style=LABELLED,
            layout={"width": "360px"},
        )
        self.reach = spread(index)
        self.message, self.cells = Message(), widgets.HTML()
        self.way.observe(lambda _: self.message.attempt(self.show), "value")
        self.show()
        super().__init__([self.way, self.message, self.cells])

    def __repr__(self) -> str:
        return f"AttributionView({len(self.query.conditions)} conditions, {self.k} hits)"

    def show(self) -> None:
        """Measure again, in the chosen way."""
        self.table = attribution(
            self.index, self.query, self.k, how=self.how[self.way.value], format=self.format
        )
        self.cells.value = heat_table(self.index, self.query, self.table, self.reach)
        means = self.table.groupby("condition")["score_drop"].mean()
        said = (f"{c.attribute} {means[i]:+.3f}" for i, c in enumerate(self.query.conditions))
        self.message.say("on average a condition adds " + ", ".join(said))

    def static(self) -> Frozen:
        """The heat map as a plotly figure, and the table with the pictures."""
        names = [f"{i + 1}. {c.attribute}" for i, c in enumerate(self.query.conditions)]
        grid, met = (
            self.table.pivot(index="rank", columns="condition", values=v) for v in ("score_drop", "met")
        )
        title = f"what each condition adds, measured by {self.way.value} (✓ the hit meets it)"
        grid = grid.set_axis(names, axis=1).rename_axis(index="hit")
        figure = matrix(grid, title, "cosine", middle=0.0)
        numbers = figure.data[0].texttemplate
        marks = [[MARKS.get(own, "?") for own in row] for row in met.to_numpy()]
        figure.update_traces(
            zmin=-self.reach, zmax=self.reach, zmid=None, text=marks, texttemplate=f"{numbers} %{{text}}"
        )
        return Frozen(figure, self.cells.value)


def spread(index: Index) -> float:
    """Twice the standard deviation of scores among products of an index: by this a difference is large or
    small, whatever the query. 1 for a pool in which all are the same.
    """
    some = index.embeddings[:: max(1, len(index.embeddings) // SAMPLE)]
    scores = (some @ some.T)[np.triu_indices(len(some), 1)]
    found = 2 * float(scores.std()) if len(scores) else 0.0
    return found if found > 1e-6 else 1.0


def heat_table(index: Index, query: Query, table: pd.DataFrame, reach: float) -> str:
    """An HTML table: a row a hit with its picture, a column a condition with its reference; orange adds, blue
    takes, in full from `reach` on.
    """
    heads = "".join(
        f'<th scope="col" style="padding:4px 8px;font-weight:normal;max-width:150px">'
        f"{product_img(c.product, 56)}<b>{i}. {escape(c.attribute)}</b>"
        f"<br>{grey(c.value)}</th>"
        for i, c in enumerate(query.conditions, 1)
    )
    lines = "".join(_line(index, own, reach) for _, own in table.groupby("rank"))
    head = f'<tr><th scope="col" style="text-align:left">hit</th>{heads}</tr>'
    style = f"{FRAME};border-collapse:separate;border-spacing:3px"
    return f'<table class="{PLAIN}" style="{style}">{head}{lines}</table>'


def _line(index: Index, own: pd.DataFrame, reach: float) -> str:
    product, rank = index.products[index.row_of[own["id"].iloc[0]]], own["rank"].iloc[0]
    picture = product_img(product, 56, inline=True)
    style = "text-align:left;font-weight:normal;max-width:340px"
    title = f'<th scope="row" style="{style}"><b>{rank}</b> {picture} {escape(product.title)}</th>'
    return f"<tr>{title}{''.join(_cell(row, reach) for row in own.itertuples())}</tr>"


def _cell(row, reach: float) -> str:
    colour = ORANGE if row.score_drop > 0 else BLUE
    strength = 0.6 * min(abs(row.score_drop) / reach, 1)  # pale enough for dark text
    sign = MARKS.get(row.met, "?")
    moved = "stays" if row.rank_without == row.rank else f"rank {row.rank_without:,} without"
    style = f"background:rgba({colour},{strength:.2f});color:#1a1a1a;text-align:center;"
    style += "padding:4px 10px;border-radius:4px;min-width:96px"
    return f'<td style="{style}"><b>{row.score_drop:+.3f}</b> {sign}<br><small>{moved}</small></td>'
