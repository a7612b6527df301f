"""Two neighbourhood maps of the same products, linked: what is chosen in one is chosen in the other."""

from functools import cache

import ipywidgets as widgets
import numpy as np
import pandas as pd

from coral_lab.study import geometry
from coral_lab.widgets.neighbourhood_map import NeighbourhoodMap


def kept(first: NeighbourhoodMap, second: NeighbourhoodMap) -> pd.Categorical:
    """For each product, how many of its neighbours two spaces have in common, as an ordered label to colour
    by.
    """
    k = min(first.k, second.k)
    common = geometry.overlap(
        geometry.neighbours(first.embeddings, k), geometry.neighbours(second.embeddings, k)
    )
    names = [f"{low}–{low + 20}% kept" for low in range(0, 100, 20)]
    return pd.Categorical.from_codes(np.minimum((5 * common).astype(int), 4), names, ordered=True)


def side_by_side(first: NeighbourhoodMap, second: NeighbourhoodMap) -> widgets.HBox:
    """Two maps of the same products: what is chosen in one is chosen in the other, by product id.

    Both can be coloured by "neighbours kept". Raises ValueError for other products.
    """
    if list(first.row_of) != list(second.row_of):
        raise ValueError("the two maps show other products; give the same ones in the same order")
    labels = cache(lambda: kept(first, second))
    for chart in (first, second):
        chart.together = [first, second]
        chart.labels["neighbours kept"] = labels
        chart.colour.options = list(chart.labels)
        chart.figure.update_layout(width=460, height=440)
    return widgets.HBox([first, second], layout={"flex_flow": "row wrap"})
