"""A neighbourhood map as one file that needs neither kernel nor network: to mail, and to keep.

What the page holds is packed (gzip, which browsers unpack by themselves): plotly's own script, and of each
product title, facts, place, nearest neighbours in the original space and a small picture.
"""

import gzip
import json
from base64 import b64encode
from hashlib import sha256
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from plotly.offline import get_plotlyjs

from coral_lab.errors import ItemError
from coral_lab.query import Product
from coral_lab.results import FRAME
from coral_lab.sources.files import write_text
from coral_lab.study.geometry import neighbours, torn
from coral_lab.study.plots import plain
from coral_lab.widgets import map_drawing

if TYPE_CHECKING:
    from coral_lab.widgets.neighbourhood_map import NeighbourhoodMap

SIDES = (64, 48, 32)
"""Pixels a side of pictures; the largest whose pictures fit in BUDGET is taken, and none if none does."""

BUDGET = 24 * 2**20
"""Bytes of all pictures: browsers open a page of some forty megabytes in seconds."""

SHOWN = 60
"""Products in the page's gallery."""


def save(chart: "NeighbourhoodMap", file: str | Path, side: int | None = None) -> None:
    """Write the map as one HTML file, coloured by whatever the map can be coloured by.

    `side` is the pictures' longest side in pixels, 0 for none; by default as large as fits (SIDES, BUDGET),
    which the page says. Raises OSError where the file cannot be written.
    """
    pictures, note = _pictures(chart.products, side)
    data = _content(chart) | {"pictures": pictures, "note": note, "shown": SHOWN}
    write_text(file, _page(chart.title or "Map of products", json.dumps(data, ensure_ascii=False)))


def _content(chart: "NeighbourhoodMap") -> dict[str, Any]:
    near = neighbours(chart.embeddings, chart.k)
    return {
        "ids": [product.id for product in chart.products],
        "titles": [product.title or product.id for product in chart.products],
        "facts": [_facts(product) for product in chart.products],
        "x": _packed(chart.places[:, 0].astype("<f4")),
        "y": _packed(chart.places[:, 1].astype("<f4")),
        "k": chart.k,
        "near": _packed(near.astype("<u4")),
        "torn": _packed(torn(chart.embeddings, chart.places, chart.k).astype("u1")),
        "colours": [_colours(chart, name) for name in chart.labels],
        "queries": [_query(chart, n) for n in range(len(chart.queries))],
        "layout": map_drawing.layout(chart.title, chart.annotations)
        | {"width": None, "height": None, "autosize": True},
    }


def _facts(product: Product) -> list[str]:
    facts = [f"{key}: {', '.join(values)}" for key, values in product.attributes.items()]
    return [" · ".join(filter(None, (product.class_name, product.language))), *facts]


def _packed(values: np.ndarray) -> str:
    return b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _colours(chart: "NeighbourhoodMap", name: str) -> dict[str, Any]:
    names, codes, ordered = chart.coded(name)
    looks = [(plain(label), *look) for label, *look in map_drawing.looks(names, ordered)]
    return {"name": name, "looks": looks, "codes": _packed(codes.astype("u1"))}


def _query(chart: "NeighbourhoodMap", n: int) -> dict[str, Any]:
    near, lost, right = chart.nearest_to_query(n)
    place = [float(value) for value in chart.stars[n]]
    id = chart.queries[n].id
    return {
        "id": id,
        "shown": plain(id),
        "place": place,
        "near": near,
        "torn": [int(own) for own in lost],
        "right": [int(own) for own in right],
    }


def _pictures(products: list[Product], side: int | None) -> tuple[list[str], str]:
    """Each product's picture as a `data:` address, "" where there is none, and what the page says of them."""
    if side is not None:
        return [_picture(product, side) for product in products], "" if side else "Saved without pictures."
    some = products[:: max(1, len(products) // 100)]
    for own in SIDES:
        mean = float(np.mean([len(_picture(product, own)) for product in some])) if some else 0.0
        if mean * len(products) <= BUDGET:
            return [_picture(product, own) for product in products], f"Pictures have {own} pixels."
    return [""] * len(products), f"{len(products):,} products are too many for pictures."


def _picture(product: Product, side: int) -> str:
    """WebP, of whose small files less is heading than of JPEG's."""
    try:
        picture = product.picture if side else None
    except ItemError:  # the page says "no picture" in its place
        return ""
    if picture is None:
        return ""
    picture.thumbnail((side, side))
    picture.save(content := BytesIO(), "WEBP", quality=70)
    return "data:image/webp;base64," + b64encode(content.getvalue()).decode()


def _page(title: str, data: str) -> str:
    script, body = (
        Path(__file__).with_name(f"saved_map.{kind}").read_text(encoding="utf-8") for kind in ("js", "html")
    )
    hash = b64encode(sha256(script.encode()).digest()).decode()
    # Plotly is unpacked by the page and runs from a blob, and its WebGL is of functions that it writes
    # itself. Nothing comes from elsewhere or goes there.
    policy = (
        f"default-src 'none'; script-src 'sha256-{hash}' blob: 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f'<body class="mathjax_ignore" style="{FRAME};margin:20px auto;max-width:1180px;padding:0 16px">'
        f"{body}{_block('data', data)}{_block('plotly', get_plotlyjs())}"
        f"<script>{script}</script></body></html>"
    )


def _block(id: str, text: str) -> str:
    """A text that the page unpacks; base64 holds nothing that ends a tag."""
    packed = b64encode(gzip.compress(text.encode("utf-8", "surrogatepass"), 9, mtime=0)).decode()
    return f'<script type="application/gzip" id="{id}">{packed}</script>'
