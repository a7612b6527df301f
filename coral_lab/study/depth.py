"""Where in a model does retrieval come about? Its layers' states measured as if each were the last."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from coral_lab.encoder import Settings, encode
from coral_lab.metrics import best_ranks, estimate, recall_at
from coral_lab.models.layers import ALL, AtLayer
from coral_lab.models.model import network_of
from coral_lab.models.protocol import Embedder
from coral_lab.query import Product, Query
from coral_lab.retrieval import Index
from coral_lab.study.comparison import judged
from coral_lab.study.edits import dropped
from coral_lab.study.geometry import anisotropy
from coral_lab.study.plots import PALETTE, TEMPLATE
from coral_lab.study.sweeps import heard, taken_away


def by_layer(
    model: Embedder,
    queries: Sequence[Query],
    products: Sequence[Product],
    settings: Settings = Settings(store=""),
    k: int = 1,
) -> pd.DataFrame:
    """Retrieval, anisotropy and how far conditions are heard, at every layer from 0 to the last.

    One row a layer. Columns: layer, R@k with low and high (95% over queries), anisotropy (mean cosine of two
    products), gain (by `sweeps.heeded`: what a condition adds to products that meet it, less to those that
    do not, in the layer's own cosines), its low and high. Everything is encoded once, and the states of all
    layers are in memory: layers × dimensions × 4 bytes an item. Raises CheckpointError for a model that only
    embeds.
    """
    model = network_of(model, "a layer's states")
    pool = encode(model, products, settings=settings, layer=ALL)
    edits = [taken_away(query, dropped) for query in queries]
    states = encode(model, [edited for own in edits for _, edited in own], settings=settings, layer=ALL)
    starts = np.cumsum([0, *map(len, edits)])
    rows = []
    for layer, (candidates, own) in enumerate(zip(pool, states, strict=True)):
        index = Index(AtLayer(model, layer), tuple(products), candidates)
        found = recall_at(best_ranks(judged(index, queries, own[starts[:-1]]).relevant), k)
        scores = own @ candidates.T
        places = zip(queries, starts, starts[1:], strict=False)
        gains = [row["gain"] for query, a, b in places for row in heard(index, query, scores[a:b])]
        row = {"layer": layer, **_columns(f"R@{k}", found), "anisotropy": anisotropy(candidates)}
        rows.append(row | _columns("gain", np.array(gains)[~np.isnan(gains)]))
    return pd.DataFrame(rows)


def _columns(name: str, values: Float[np.ndarray, " value"]) -> dict[str, float]:
    found = estimate(values)
    return {name: found.mean, f"{name} low": found.low, f"{name} high": found.high}


def figure(table: pd.DataFrame) -> go.Figure:
    """`by_layer`'s table as curves over depth, with their intervals."""
    measured = [name for name in table if f"{name} low" in table or name == "anisotropy"]
    made = make_subplots(1, len(measured), subplot_titles=measured)
    for column, name in enumerate(measured, 1):
        low, high = (table.get(f"{name} {end}", table[name]) for end in ("low", "high"))
        error = {"type": "data", "array": high - table[name], "arrayminus": table[name] - low}
        made.add_scatter(
            x=table["layer"],
            y=table[name],
            error_y=error,
            name=name,
            mode="lines+markers",
            line={"color": PALETTE[column - 1]},
            row=1,
            col=column,
            hovertemplate="layer %{x}: %{y:.3f}",
        )
    made.update_xaxes(title="layer", dtick=max(1, len(table) // 8))
    made.update_layout(
        template=TEMPLATE, height=320, showlegend=False, margin={"l": 40, "r": 10, "t": 40, "b": 40}
    )
    return made
