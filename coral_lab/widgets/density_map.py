"""A map of millions to look into: how many products stand where, and the products themselves where few enough
are in sight.
"""

from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from coral_lab.query import Product
from coral_lab.results import Gallery
from coral_lab.study.large_maps import LargeMap, Window, counted, density, heatmap, layout
from coral_lab.study.plots import PALETTE
from coral_lab.widgets.parts import Frozen, Message, live_figure

MOST = 2_000
"""Products in sight from which on they are drawn one by one."""
SHOWN = 24  # products in the gallery


class DensityMap(widgets.VBox):
    """A `study.large_map`: zooming counts anew in what is in sight, and at most MOST products are drawn one
    by one there. A click or a box around some shows them: only then are they fetched, by `fetch`, from ids to
    products (`Store.products`). `cells` are on the map's longer side.

    What the browser gets is bounded, however many products there are. `static()` is the same without widgets.
    """

    def __init__(
        self,
        found: LargeMap,
        fetch: Callable[[Sequence[str]], Sequence[Product]],
        *,
        title: str = "",
        cells: int = 200,
    ):
        self.found, self.fetch, self.cells = found, fetch, cells
        self.title = title or f"{len(found.ids):,} products"
        self.window, self.drawn = found.window, np.zeros(0, np.int64)
        points = go.Scatter(
            mode="markers",
            x=[],
            y=[],
            showlegend=False,
            marker={"size": 7, "color": PALETTE[1], "line": {"width": 1, "color": "white"}},
            hovertemplate="%{text}<extra></extra>",
        )
        look = layout(self.title) | {"dragmode": "zoom"}
        left, right, lower, upper = self.window
        look["xaxis"] = look["xaxis"] | {"range": [left, right]}
        look["yaxis"] = look["yaxis"] | {"range": [lower, upper]}
        self.figure = live_figure(heatmap(*counted(found, self.window, cells)), points, **look)
        self.heat, self.points = self.figure.data
        self.message, self.gallery = Message(), widgets.HTML()
        self.figure.layout.on_change(
            lambda _, x, y: self.message.attempt(lambda: self.look_at((*x, *y))), "xaxis.range", "yaxis.range"
        )
        self.points.on_click(lambda _, chosen, __: self._chosen(chosen.point_inds))
        self.points.on_selection(lambda _, chosen, __: self._chosen(chosen.point_inds))
        self._say()
        super().__init__([self.figure, self.message, self.gallery])

    def __repr__(self) -> str:
        return (
            f"DensityMap({len(self.found.ids):,} products, {len(self.found.inside(self.window)):,} in sight)"
        )

    def look_at(self, window: Window) -> None:
        """Count anew in a window, as zooming does, and draw its products if they are few enough.

        Raises ValueError for a window that is none.
        """
        counts, x, y = counted(self.found, window, self.cells)
        self.window = window
        inside = self.found.inside(window)
        self.drawn = inside if len(inside) <= MOST else inside[:0]
        with self.figure.batch_update():
            self.heat.update(heatmap(counts, x, y).to_plotly_json(), overwrite=False)
            self.heat.opacity = 0.35 if len(self.drawn) else 1
            own = self.found.places[self.drawn]
            self.points.update(x=own[:, 0], y=own[:, 1], text=self.found.ids[self.drawn], selectedpoints=None)
        self._say()

    def select(self, chosen: Sequence[int]) -> None:
        """Show products by their places among those that are drawn, the first SHOWN of them."""
        ids = [str(self.found.ids[self.drawn[i]]) for i in chosen]
        shown = list(self.fetch(ids[:SHOWN]))
        self.gallery.value = Gallery(shown, [])._repr_html_() if shown else ""
        more = f", the first {SHOWN} shown" if len(ids) > SHOWN else ""
        self.message.say(f"{len(ids):,} chosen{more}")

    def static(self) -> Frozen:
        """What is in sight as a plain figure, and the gallery."""
        figure = density(self.found, self.title, self.window, self.cells)
        if len(self.drawn):
            figure.data[0].opacity = 0.35
            figure.add_trace(go.Scatter(self.points.to_plotly_json()))
        return Frozen(figure, self.gallery.value)

    def _chosen(self, places: Sequence[int]) -> None:
        if len(places):
            self.message.attempt(lambda: self.select(places))

    def _say(self) -> None:
        count = len(self.found.inside(self.window))
        way = "click one, or draw a box" if len(self.drawn) else f"zoom in to {MOST:,} to see them one by one"
        self.message.say(f"{count:,} products in sight; {way}")
