"""How the neighbourhood map is drawn: what can be coloured by, colours and shapes of labels, lines."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, Int64, UInt8
from plotly.colors import sample_colorscale

from coral_lab.query import Product
from coral_lab.study.cluster_names import Clusters
from coral_lab.study.plots import PALETTE, SYMBOLS, plain

LOOKS = len(PALETTE) + 1
"""Labels that a reader can tell apart: the commonest, each in a colour, and the rest in grey."""
STEPS = 28
"""The same where they have an order, which a scale of colours shows."""
OTHER = "#b3b3b3"
NO_LABEL = "no label"
"""What products are called that an ordered or other Categorical leaves out."""
NAMED = 12  # clusters whose names are written

Labels: TypeAlias = Sequence[str] | pd.Categorical | Callable[[], Sequence[str] | pd.Categorical]
"""A label for each product; of an ordered Categorical the order shows in the colours. A function is called
when needed.
"""


NUMBERS = np.array(
    [{"circle": 0, "diamond": 2, "cross": 3, "triangle-up": 5}[name] for name in SYMBOLS], np.uint8
)
"""Plotly's numbers of SYMBOLS."""


def packed(values: UInt8[np.ndarray, " point"]) -> dict[str, str]:
    """The numbers as plotly packs them, which saves its slow look at each (5 s for 50,000 shapes)."""
    return {"dtype": "u1", "bdata": b64encode(values.tobytes()).decode()}


def layout(title: str, annotations: Sequence[dict] = ()) -> dict:
    axis = {"visible": False}
    return {
        "annotations": list(annotations),
        "template": "simple_white",
        "width": 700,
        "height": 520,
        "title": {"text": plain(title), "font": {"size": 15}},
        "dragmode": "lasso",
        "hovermode": "closest",
        "legend": {"itemsizing": "constant", "font": {"size": 11}},
        "xaxis": axis,
        "yaxis": {**axis, "scaleanchor": "x"},
        "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
    }


def labels(products: Sequence[Product]) -> dict[str, Labels]:
    """What can be coloured by: class, language, and the attributes that most products have."""
    found: dict[str, Labels] = {
        "class": [p.class_name for p in products],
        "language": [p.language for p in products],
    }
    counts = pd.Series([key for p in products for key in p.attributes]).value_counts()
    for key in counts.index[counts > len(products) / 2]:
        found[key] = [", ".join(p.attributes.get(key, ("",))) for p in products]
    return found


def looks(names: Sequence[str], ordered: bool) -> list[tuple[str, str, str]]:
    """Name, colour and shape of each label. The last of LOOKS is grey where it stands for several, and else
    has the first colour in another shape.
    """
    if names and names[-1] == NO_LABEL:
        return [*looks(names[:-1], ordered), (NO_LABEL, OTHER, SYMBOLS[0])]
    if ordered:
        shares = np.linspace(0, 1, len(names))
        return [
            (name, colour, SYMBOLS[0])
            for name, colour in zip(names, sample_colorscale("Cividis", shares), strict=True)
        ]
    found = [
        (name, PALETTE[n % len(PALETTE)], SYMBOLS[n // len(PALETTE) % len(SYMBOLS)])
        for n, name in enumerate(names)
    ]
    if len(names) == LOOKS and names[-1].startswith("other ("):
        found[-1] = (names[-1], OTHER, SYMBOLS[0])
    return found


def annotations(places: Float[np.ndarray, "row 2"], clusters: Clusters) -> list[dict]:
    """The names of the largest clusters, each at the median place of its products, where no other's is."""
    low, high = np.percentile(places, [2, 98], axis=0)
    made: list[dict] = []
    for code, name in enumerate(clusters.names):
        own = places[clusters.codes == code]
        if not len(own) or len(made) == NAMED:
            continue
        x, y = np.median(own, 0)
        gaps = [np.abs(np.array([x - other["x"], y - other["y"]]) / (high - low)) for other in made]
        if all(gap[0] > 0.2 or gap[1] > 0.06 for gap in gaps):
            look = {"showarrow": False, "bgcolor": "rgba(255,255,255,0.5)", "font": {"size": 12}}
            made.append({"x": float(x), "y": float(y), "text": plain(name), **look})
    return made


def points(places: Float[np.ndarray, "row 2"], webgl: bool) -> go.Scatter | go.Scattergl:
    """All products as one trace."""
    kind = go.Scattergl if webgl else go.Scatter
    return kind(
        x=places[:, 0].astype(np.float32),
        y=places[:, 1].astype(np.float32),
        mode="markers",
        showlegend=False,
        hoverinfo="none",
        marker={"size": 7, "opacity": 0.8, "line": {"width": 0}},
        unselected={"marker": {"opacity": 0.12}},
    )


def label(
    places: Float[np.ndarray, "row 2"],
    look: tuple[str, str, str],
    titles: Sequence[str],
    chosen: Int64[np.ndarray, " chosen"] | None,
) -> go.Scattergl:
    """The products of one label in a plain figure; all but the `chosen` are pale, unless that is None."""
    name, colour, symbol = look
    return go.Scattergl(
        x=places[:, 0].astype(np.float32),
        y=places[:, 1].astype(np.float32),
        mode="markers",
        name=plain(name),
        text=list(map(plain, titles)),
        hoverinfo="text+name",
        marker={"size": 6, "opacity": 0.75, "color": colour, "symbol": symbol},
        selectedpoints=chosen,
        selected={"marker": {"size": 9, "opacity": 1}},
        unselected={"marker": {"opacity": 0.2}},
        legendrank=1000 + (colour == OTHER),
    )


def stars(places: Float[np.ndarray, "query 2"], names: Sequence[str]) -> go.Scatter:
    """Queries."""
    line = {"color": "#ffffff", "width": 1}
    return go.Scatter(
        x=places[:, 0],
        y=places[:, 1],
        mode="markers",
        name="queries",
        hoverinfo="text",
        text=[plain(name) for name in names],
        marker={"symbol": "star", "size": 15, "color": "#000000", "line": line},
        showlegend=bool(names),
    )


def lines(name: str, colour: str, dash: str = "solid", pairs: Sequence[tuple] = ()) -> go.Scatter:
    x, y = path(pairs)
    line = {"color": colour, "width": 1.5, "dash": dash}
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        name=name,
        line=line,
        hoverinfo="skip",
        showlegend=bool(pairs) or "positives" not in name,
    )


def path(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list, list]:
    """Separate lines in one trace: a gap after each."""
    x, y = (
        [value for start, end in pairs for value in (float(start[axis]), float(end[axis]), None)]
        for axis in (0, 1)
    )
    return x, y
