"""The neighbourhood map: a catalogue in two dimensions that tells what two dimensions hide.

Hover shows a product, a click its nearest neighbours in the *original* space (those that the map tore away
are dashed), a lasso fills the gallery and `selection`. One trace holds all points, so that 50,000 stay
smooth.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float, Float32

from coral_lab.query import Product, Query
from coral_lab.results import GREY, Gallery, flow, grey, paragraph, product_img, tile
from coral_lab.sources.border import text_of
from coral_lab.store.topk import top_k
from coral_lab.study.cluster_names import Clusters
from coral_lab.study.plots import PALETTE, SYMBOLS, plain
from coral_lab.widgets import map_drawing
from coral_lab.widgets.parts import LABELLED, Frozen, Message, button, live_figure, wrapped

SHOWN = 24  # products in the gallery
NEAR, TORN, RIGHT, STARS = 1, 2, 3, 4  # places among the figure's traces; legend entries follow
HINT = (
    "Hover over a point to see it, click for its neighbours, draw around some to list them. By keyboard: "
    "write an id or words into <i>Find</i>. If the map stays empty, the browser has no WebGL: make it with "
    "webgl=False."
)


class NeighbourhoodMap(widgets.VBox):
    """A map of `products` with their `embeddings` and `places`, in the same order.

    `extra` are more things to colour by: a label for each product, by name. `k` is how many neighbours a
    click shows. `queries` with their `query_embeddings` are drawn as stars, joined to their positives. A map
    has no place for a query: its star stands at the median place of its `k` nearest products, so only what it
    is joined to has meaning. `clusters` (`study.clusters`) are written on the map by name. `webgl=False`
    draws SVG, for browsers without WebGL and a few thousand points. `selection` is what was clicked or
    lassoed, as a table; `static()` the same without widgets, `save(file)` as a page of its own. (Ten
    parameters: what is shown, where, and what it is coloured by.) Raises ValueError if lengths differ.
    """

    def __init__(
        self,
        products: Sequence[Product],
        embeddings: Float32[np.ndarray, "row dim"],
        places: Float[np.ndarray, "place 2"],
        *,
        k: int = 10,
        extra: Mapping[str, map_drawing.Labels] | None = None,
        queries: Sequence[Query] = (),
        query_embeddings: Float32[np.ndarray, "query dim"] | None = None,
        clusters: Clusters | None = None,
        title: str = "",
        webgl: bool = True,
    ):
        if not len(products) == len(embeddings) == len(places):
            raise ValueError(
                f"{len(products)} products, {len(embeddings)} embeddings and {len(places)} places; give one "
                "each"
            )
        if len(queries) != (0 if query_embeddings is None else len(query_embeddings)):
            raise ValueError(
                f"{len(queries)} queries and {0 if query_embeddings is None else len(query_embeddings)} "
                "query_embeddings; give each its embedding"
            )
        if clusters is not None and len(clusters.codes) != len(products):
            raise ValueError(
                f"{len(products)} products and clusters of {len(clusters.codes)}; make them of these products"
            )
        self.products, self.embeddings, self.places, self.title = (
            list(products),
            embeddings,
            np.asarray(places),
            title,
        )
        self.k = min(k, len(self.products) - 1)
        self.row_of = {product.id: row for row, product in enumerate(self.products)}
        self.labels: dict[str, map_drawing.Labels] = {**map_drawing.labels(self.products), **(extra or {})}
        self.annotations: list[dict] = []
        if clusters is not None:
            self.labels["cluster"] = clusters.labels
            self.annotations = map_drawing.annotations(self.places, clusters)
        self.queries = list(queries)
        own_rows = np.empty((0, embeddings.shape[1]), np.float32)
        self.query_embeddings = own_rows if query_embeddings is None else query_embeddings
        self.stars = (
            np.array([np.median(self.places[self._near(own)], 0) for own in self.query_embeddings])
            if queries
            else np.empty((0, 2))
        )
        self.chosen: list[int] = []
        self.together: list[NeighbourhoodMap] = [self]
        self._build(webgl)
        self._paint()
        aside = widgets.VBox(
            [self.colour, self.find, *([self.ask] if queries else []), self.clear, self.detail],
            layout={"width": "250px", "overflow": "visible"},
        )
        super().__init__([wrapped(self.figure, aside, gap=16), self.message, self.gallery])

    def __repr__(self) -> str:
        return f"NeighbourhoodMap({len(self.products):,} products, {len(self.chosen):,} chosen)"

    @property
    def selection(self) -> pd.DataFrame:
        """The chosen products: id, title, class, language, one column an attribute, and their place on the
        map.
        """
        rows = [
            {
                "id": p.id,
                "title": p.title,
                "class": p.class_name,
                "language": p.language,
                "x": float(self.places[i, 0]),
                "y": float(self.places[i, 1]),
                **{key: ", ".join(values) for key, values in p.attributes.items()},
            }
            for i, p in ((i, self.products[i]) for i in self.chosen)
        ]
        return pd.DataFrame(rows)

    # What a click does

    def select(self, chosen: Sequence[int]) -> None:
        """Choose products by their places in the list, as a lasso does; in linked maps too."""
        for chart in self.together:
            chart._choose(chosen)
            chart._draw()

    def look_at(self, product: int | str) -> None:
        """Show the neighbours of a product, by place in the list or id, in the original space; in linked maps
        too.

        Raises KeyError for an id that is not on the map.
        """
        i = self._place(product)
        for chart in self.together:
            near = chart.neighbours(i)
            torn = ~np.isin(near, _nearest_on_map(chart.places, chart.places[i], chart.k, but=i))
            captions = ["the product", *_captions(torn)]
            chart._choose([i, *near], captions, f"{torn.sum()} of {len(near)} neighbours are torn away")
            chart._draw(chart.places[i], near, torn)

    def look_from(self, query: int) -> None:
        """Show the products nearest to a query, by its place among `queries`, in the original space.

        Those that are not the nearest to its star on the map are torn away.
        """
        near, torn, right = self.nearest_to_query(query)
        captions = [
            caption + " ✓ positive" * yes for caption, yes in zip(_captions(torn), right, strict=True)
        ]
        self._choose(
            near,
            captions,
            f"{sum(right)} of the {len(near)} nearest are right answers, {torn.sum()} torn away",
        )
        self._draw(self.stars[query], near, torn)

    def nearest_to_query(self, query: int) -> tuple[list[int], Bool[np.ndarray, " near"], list[bool]]:
        """The products nearest to a query, by its place, which of them are torn away, and which are right.

        Raises ValueError for a query that the map does not have.
        """
        if not 0 <= query < len(self.queries):
            raise ValueError(
                f"query {query} is not among the map's {len(self.queries)}; make it with queries="
            )
        near = self._near(self.query_embeddings[query])
        torn = ~np.isin(near, _nearest_on_map(self.places, self.stars[query], self.k))
        return near, torn, [self.products[i].id in self.queries[query].positives for i in near]

    def save(self, file: str | Path, side: int | None = None) -> None:
        """The map as one HTML file that needs neither kernel nor network: `saved_map.save`."""
        from coral_lab.widgets.saved_map import save

        save(self, file, side)

    def search(self, words: str) -> None:
        """What the Find box does: the neighbours of the product with this id, or else all with these words in
        the title.
        """
        if words.strip() in self.row_of:
            return self.look_at(words.strip())
        wanted = text_of(words, "the search", "words").lower().split()
        found = [
            i for i, p in enumerate(self.products) if wanted and all(w in p.title.lower() for w in wanted)
        ]
        if wanted and not found:
            raise ValueError(f"no id and no title has {words!r}; use fewer words")
        self.select(found)

    def neighbours(self, i: int) -> list[int]:
        """Places in the list of the `k` nearest other products in the original space."""
        return self._near(self.embeddings[i], but=i)

    def static(self, limit: int = 2000) -> Frozen:
        """The map as a plain figure, coloured as it is now, with lines as they are drawn, and the gallery.

        If something is chosen, here or in linked maps, its labels come first and all else is pale. Of more
        than `limit` products evenly many are drawn, and all that are chosen; the title says so.
        """
        drawn = np.arange(len(self.products))
        if len(drawn) > limit:
            drawn = np.union1d(drawn[:: -(-len(drawn) // limit)], np.array(self.chosen[:limit], int))
        title = self.title + f" ({len(drawn):,} of {len(self.products):,} drawn)" * (
            len(drawn) < len(self.products)
        )
        chosen = [i for chart in self.together for i in chart.chosen]
        names, codes, ordered = self.coded(self.colour.value, chosen)
        figure = go.Figure(layout=map_drawing.layout(title, self.annotations))
        looks = map_drawing.looks(names, ordered)
        under = sorted(range(len(looks)), key=lambda code: looks[code][1] != map_drawing.OTHER)
        for code in under:  # grey lies under colours, and comes after them in the legend
            own = drawn[codes[drawn] == code]
            titles = [self.products[i].title for i in own]
            picked = np.flatnonzero(np.isin(own, self.chosen)) if self.chosen else None
            figure.add_trace(map_drawing.label(self.places[own], looks[code], titles, picked))
        for trace in self.figure.data[NEAR : STARS + 1]:
            if len(trace.x):
                figure.add_trace(go.Scatter(trace.to_plotly_json(), legendrank=1002))
        return Frozen(figure, self.gallery.value)

    # What the reader sees

    def _build(self, webgl: bool) -> None:
        right = [
            (self.stars[n], self.places[self.row_of[id]])
            for n, query in enumerate(self.queries)
            for id in query.positives
            if id in self.row_of
        ]
        self.figure = live_figure(
            map_drawing.points(self.places, webgl),
            map_drawing.lines("near in the space", "#000000"),
            map_drawing.lines("torn away by the map", PALETTE[1], "dash"),
            map_drawing.lines("query to its positives", PALETTE[2], "dot", right),
            map_drawing.stars(self.stars, [query.id for query in self.queries]),
            **map_drawing.layout(self.title, self.annotations),
        )
        self.points = self.figure.data[0]
        self.message, self.gallery = Message(), widgets.HTML()
        self.detail = widgets.HTML(paragraph(f'<span style="{GREY}">{HINT}</span>'))
        wide = {"width": "240px"}
        self.colour = widgets.Dropdown(
            options=list(self.labels), description="Colour by", style=LABELLED, layout=wide
        )
        self.find = widgets.Text(
            description="Find",
            placeholder="id, or words of a title",
            continuous_update=False,
            style=LABELLED,
            layout=wide,
        )
        names = [("", None), *((f"{n + 1}. {query.id}", n) for n, query in enumerate(self.queries))]
        self.ask = widgets.Dropdown(options=names, description="Query", style=LABELLED, layout=wide)
        self.clear = button("Clear", "Choose nothing", lambda: self._attempt(lambda: self.select([])), "72px")
        self._listen()

    def _listen(self) -> None:
        def when(control: widgets.Widget, action: Callable) -> None:
            control.observe(lambda change: self._attempt(lambda: action(change["new"])), "value")

        def on(event: Callable, action: Callable[[Sequence[int]], object]) -> None:
            event(lambda _, found, __: self._attempt(lambda: action(found.point_inds)))

        when(self.colour, lambda _: self._paint())
        when(self.find, self.search)
        when(self.ask, lambda n: None if n is None else self.look_from(n))
        on(self.points.on_hover, lambda found: self._tell(found))
        on(self.points.on_click, lambda found: self.look_at(found[0]) if found else None)
        on(self.points.on_selection, self.select)
        on(self.figure.data[STARS].on_click, lambda found: self.look_from(found[0]) if found else None)
        self.points.on_deselect(lambda *_: self._attempt(lambda: self.select([])))

    def _attempt(self, action: Callable[[], object]) -> None:
        self.message.attempt(action)

    def _place(self, product: int | str) -> int:
        if isinstance(product, str) and product not in self.row_of:
            raise KeyError(
                f"product {product!r} is not among the {len(self.products):,} on the map; use an id such as "
                f"{self.products[0].id!r}"
            )
        return self.row_of[product] if isinstance(product, str) else range(len(self.products))[product]

    def _near(self, embedding: Float32[np.ndarray, " dim"], but: int | None = None) -> list[int]:
        _, found = top_k(embedding[None], self.embeddings, self.k + 1)
        return [int(j) for j in found[0] if j != but][: self.k]

    def _choose(self, chosen: Sequence[int], captions: Sequence[str] = (), said: str = "") -> None:
        self.chosen = [int(i) for i in chosen]
        self.points.selectedpoints = self.chosen or None  # an empty list would fade all points
        shown = [self.products[i] for i in self.chosen[:SHOWN]]
        self.gallery.value = Gallery(shown, list(captions)[:SHOWN])._repr_html_() if shown else ""
        more = f", the first {SHOWN} shown" if len(self.chosen) > SHOWN else ""
        self.message.say((said or f"{len(self.chosen):,} chosen") + more)

    def _draw(
        self,
        start: np.ndarray | None = None,
        near: Sequence[int] = (),
        torn: Sequence[bool] | np.ndarray = (),
    ) -> None:
        """Lines from a place to its neighbours; none without a place."""
        for number, gone in ((NEAR, False), (TORN, True)):
            ends = [self.places[j] for j, lost in zip(near, torn, strict=True) if lost == gone]
            x, y = map_drawing.path([(start, end) for end in ends if start is not None])
            self.figure.data[number].update(x=x, y=y)

    def coded(self, name: str, first: Sequence[int] = ()) -> tuple[list[str], np.ndarray, bool]:
        """Of what can be coloured by: the labels that can be told apart, commonest first or in their order,
        the number of each product's, and whether they have an order. `first` are products whose labels come
        before all others.

        More than map_drawing.LOOKS labels share one last name, "other"; with an order, more than STEPS.
        """
        labels = self.labels[name]
        values = labels() if callable(labels) else labels
        ordered = isinstance(values, pd.Categorical) and bool(values.ordered)
        if not isinstance(values, pd.Categorical):
            values = pd.Categorical([str(value) for value in values])
            counts = pd.Series(values).value_counts()
            if first:
                counts += len(values) * pd.Series(values[list(first)]).value_counts()
            counts = counts.sort_values(ascending=False, kind="stable")
            values = values.reorder_categories(list(counts.index))  # of an index pandas takes the old order
        names, codes = [str(name) for name in values.categories], np.asarray(values.codes, np.int64)
        if (codes < 0).any():
            codes, names = np.where(codes < 0, len(names), codes), [*names, map_drawing.NO_LABEL]
        most = map_drawing.STEPS if ordered else map_drawing.LOOKS
        if len(names) <= most:
            return names, codes, ordered
        others = f"other ({len(names) - most + 1} labels)"
        return [*names[: most - 1], others], np.minimum(codes, most - 1), ordered

    def _paint(self) -> None:
        """Colours, shapes and legend. Numbers for colours and shapes travel as bytes: no text a point."""
        names, codes, ordered = self.coded(self.colour.value)
        looks = map_drawing.looks(names, ordered)
        shapes = np.array([SYMBOLS.index(symbol) for *_, symbol in looks])
        steps = np.repeat(np.arange(len(looks) + 1) / len(looks), 2)[1:-1]
        scale = [[float(at), looks[n // 2][1]] for n, at in enumerate(steps)]
        with self.figure.batch_update():
            self.points.marker.update(
                color=codes.astype(np.float32),
                colorscale=scale,
                cmin=-0.5,
                cmax=len(looks) - 0.5,
                symbol=map_drawing.packed(map_drawing.NUMBERS[shapes][codes]),
            )
            self.figure.data = self.figure.data[: STARS + 1]
            entries = [
                go.Scatter(
                    x=[None],
                    y=[None],
                    mode="markers",
                    name=plain(name),
                    hoverinfo="skip",
                    marker={"color": colour, "symbol": symbol, "size": 8},
                )
                for name, colour, symbol in looks
            ]
            self.figure.add_traces(entries)  # a legend entry is a trace without points

    def _tell(self, points: Sequence[int]) -> None:
        if points:
            product = self.products[points[0]]
            facts = [grey(f"{key}: {', '.join(values)}") for key, values in product.attributes.items()]
            lines = [
                f"<b>{escape(product.title)}</b>",
                grey(f"id {product.id} · {product.class_name} · {product.language}"),
                *facts,
            ]
            self.detail.value = flow([tile(product_img(product, 140), lines, 214)])


def _captions(torn: Bool[np.ndarray, " near"]) -> list[str]:
    return [f"neighbour {n}" + ", torn away" * bool(lost) for n, lost in enumerate(torn, 1)]


def _nearest_on_map(places: np.ndarray, place: np.ndarray, k: int, but: int | None = None) -> np.ndarray:
    distance = ((places - place) ** 2).sum(1)
    if but is not None:
        distance[but] = np.inf
    return np.argsort(distance, kind="stable")[:k]
