# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Retrieval neighbourhoods: a bench to try queries on, and a map to look around
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/05_retrieval_neighbourhoods.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/05_retrieval_neighbourhoods.ipynb)
#
# **Question.** Why is *this* product first? Change the query, and watch the ranking follow; look at a
# product's neighbours, and see which of them a picture of the space hides.
#
# The widgets need a running kernel (JupyterLab, VS Code). Below each stands its static twin, which needs
# nothing. Measured on **coral-mini** and MERIT-mini; MODELS and DATA take any other.

# %% tags=["install"]
# In the workbench's own environment this does nothing. On Colab or Kaggle it installs the package:
# by its name, or put the path of a wheel of your own in its place.
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("coral_lab") is None:
    get_ipython().run_line_magic("pip", "install --quiet coral-lab[all]")

# %% tags=["parameters"]
MODELS = ["mini", "mini-base"]  # or "Bia/CORAL", or folders
DATA = "mini"  # or "WeiChow/merit", a folder with its files, a table of your own
POOL = 3000  # products to find
MAPPED = 1000  # products on the maps
SEED = 0

# %%
import pandas as pd

import coral_lab as cl
from coral_lab.study import geometry
from coral_lab.widgets import AttributionView, NeighbourhoodMap, QueryBench, as_python, side_by_side

pd.set_option("display.max_colwidth", None)  # queries and titles in full
shop = cl.dataset(DATA, on_error="skip", sample=500).having("queries")
indexes = {name: cl.index(cl.load(name), shop.products[:POOL]) for name in MODELS}
index = indexes[MODELS[0]]
query = shop.where(conditions=3).having("queries").queries[0]
index

# %% [markdown]
# ## The query bench
#
# First a toy: three pictures, three conditions, so six orders of asking for the same thing. Move a condition
# up or down, leave one out, point at another product, change the words. *Pin* keeps a ranking: from then on
# each hit says how far it has moved. **Prediction.** Pin, then swap the first two conditions. The wish is the
# same: will any hit move?

# %%
bench = QueryBench(indexes, query)
bench

# %%
bench.static()

# %% [markdown]
# The same from Python: what a click does is a new query that remembers its parent. Here on a bench of its
# own.

# %%
scripted = QueryBench(indexes, query)
scripted.pin()
scripted.move(0, 1)
scripted.history

# %%
print(as_python(scripted.query))
scripted.static()

# %%
before, after = (step.ranking[:10] for step in scripted.steps)
same = {hit.product.id for hit in before} & {hit.product.id for hit in after}
print(f"We observe: {len(same)} of ten hits stay when the first two conditions change places.")

# %% [markdown]
# ## What each condition adds
#
# The score of each hit, less its score when one condition is left out. **Prediction.** A condition that is
# understood adds more to hits that meet it (✓) than to those that miss it (✗).

# %%
view = AttributionView(index, query)
view

# %%
view.static()

# %%
met = view.table.dropna(subset=["met"]).groupby("met")["score_drop"].mean()
print(
    "We observe: a condition adds",
    ", ".join(f"{value:+.3f} to hits that {'meet' if yes else 'miss'} it" for yes, value in met.items()),
)

# %% [markdown]
# ## The neighbourhood map
#
# Hover over a point, click it, or draw a lasso around some. A click asks the *original* space: full lines
# lead to neighbours that the map shows near, dashed ones to those that it tore away. Stars are queries,
# joined to their positives.

# %%
products, rows = shop.products[:MAPPED], index.embeddings[:MAPPED]
places = geometry.umap(rows, SEED)
ids = {product.id for product in products}
asked = [query for query in shop.queries if ids & set(query.positives)][:3]
chart = NeighbourhoodMap(
    products, rows, places, queries=asked, query_embeddings=cl.encode(index.model, asked), title=MODELS[0]
)
chart

# %%
chart.look_at(0)
chart.static()

# %%
chart.selection[["id", "title", "class", "language"]]

# %%
torn = geometry.torn(rows, places, chart.k)
print(
    f"We observe: the map tears away {torn[0].sum()} of the {chart.k} neighbours of product "
    f"{products[0].id}, and {torn.mean():.0%} of all."
)

# %% [markdown]
# ## Two checkpoints side by side
#
# Drawn together, so that what has the same neighbours stays. Choose in one map, and see where the same
# products are in the other; colour by *neighbours kept*. **Prediction.** Where will the two differ: inside
# classes, or between them?

# %%
spaces = [indexes[name].embeddings[:MAPPED] for name in (MODELS[0], MODELS[-1])]
drawn = geometry.aligned_umaps(spaces, SEED)
maps = [
    NeighbourhoodMap(products, space, place, title=name)
    for name, space, place in zip((MODELS[0], MODELS[-1]), spaces, drawn, strict=True)
]
side_by_side(*maps)

# %%
maps[0].colour.value = "neighbours kept"
maps[0].static()

# %%
kept = pd.Series(maps[0].labels["neighbours kept"]()).value_counts(normalize=True, sort=False)
print("We observe:", ", ".join(f"{share:.0%} of products have {label}" for label, share in kept.items()))

# %% [markdown]
# ## Summary
#
# - One edit at a time, against a pinned ranking, tells more than two rankings side by side.
# - A map is where to look; the neighbours are in the space.
#
# **Exercise.** In the bench, point two conditions at the same product. Does the second still add anything?
# Give that query to the attribution view.
