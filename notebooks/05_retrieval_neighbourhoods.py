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
# nothing. Measured on **coral-mini** and MERIT-mini, drawn products, which say nothing about the paper's
# model; MODELS and DATA take any other, such as `Bia/CORAL`.
#
# About 2 minutes on two cores · first steps

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
ASKED = 60  # queries of which each condition is left out once
SEED = 0

# %%
from itertools import permutations

import numpy as np
import pandas as pd

import coral_lab as cl
from coral_lab.metrics import paired_difference
from coral_lab.study import geometry, heeded, solutions
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import bars, estimates_by
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
# same: of the ten first hits, how many stay among them?

# %%
guess_stay = None  # yours: a number from 0 to 10

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
print(f"We observe: {len(same)} of ten hits stay when the first two conditions of this query change places.")
guessed(guess_stay, len(same), within=1)

# %% [markdown]
# One query is an anecdote; [Condition order](03_condition_order.ipynb) asks many.
#
# ## What each condition adds
#
# The score of each hit, less its score when one condition is left out. Colours are full at twice the spread
# of the scores among products, so that two queries' figures can be compared. **Prediction.** A condition that
# is understood adds more to products that meet it (✓) than to those that miss it (✗). Of a hundred
# conditions, how many do?

# %%
guess_conditions = None  # yours: a number from 0 to 100

# %%
view = AttributionView(index, query)
view

# %%
view.static()

# %% [markdown]
# Eight hits of one query prove nothing. So the same of many queries: for each condition the mean of what it
# adds to products of the wanted class that meet it, less that of those that do not. A query counts once.

# %%
heard = heeded(index, shop.queries[:ASKED]).dropna(subset=["gain"])
gains = heard.groupby("query")["gain"].mean().to_numpy()
gain = paired_difference(gains, np.zeros(len(gains)))
told = "can be told apart" if gain.p < 0.05 else "cannot be told apart"
interval = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
print(f"We observe: over {gain.n} queries a condition adds {interval} more to what meets it")
print(f"than to what misses it; the two {told} (p = {gain.p:.4f}).")
guessed(guess_conditions, round(100 * (heard["gain"] > 0).mean()), within=10)

# %% [markdown]
# ## The neighbourhood map
#
# Hover over a point, click it, or draw a lasso around some. A click asks the *original* space: full lines
# lead to neighbours that the map shows near, dashed ones to those that it tore away. Stars are queries,
# joined to their positives. The commonest labels have colours; the others are grey. **Prediction.** Of a
# hundred neighbours in the space, how many does the map tear away?

# %%
guess_torn = None  # yours: a number from 0 to 100

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
guessed(guess_torn, round(100 * torn.mean()), within=10)

# %% [markdown]
# So what is far apart on a map may be near in the space, and no more is read off a map here.
#
# ## Two checkpoints side by side
#
# Drawn together, so that what has the same neighbours stays. Choose in one map, and see where the same
# products are in the other; colour by *neighbours kept*. **Prediction.** Of a product's neighbours in the
# first model's space some are none in the other's. Which are lost more often: those of its own class
# (inside), those of another (between), or neither (alike)?

# %%
guess_lost = None  # yours: inside, between or alike

# %%
spaces = [indexes[name].embeddings[:MAPPED] for name in (MODELS[0], MODELS[-1])]
drawn = geometry.aligned_umaps(spaces, SEED)
maps = [
    NeighbourhoodMap(products, space, place, title=name)
    for name, space, place in zip((MODELS[0], MODELS[-1]), spaces, drawn, strict=True)
]
side_by_side(*maps)

# %% [markdown]
# One product and its neighbours in each space:

# %%
maps[0].look_at(0)
maps[0].static().figure

# %%
maps[1].static().figure

# %%
share = pd.Series(maps[0].labels["neighbours kept"]()).value_counts(normalize=True, sort=False)
print("We observe:", "; ".join(f"{own:.0%} of products have {label}" for label, own in share.items()))

# %% [markdown]
# By class, the sixteen commonest, with 95% intervals over products; then the question, on the products that
# have neighbours of both kinds (it needs classes).

# %%
near = [geometry.neighbours(space, 10) for space in spaces]
classes = np.array([product.class_name for product in products])
kept = pd.DataFrame({"class": classes, "kept": geometry.overlap(*near)})
common = kept[kept["class"].isin(kept["class"].value_counts().index[:16])]
means = common.groupby("class")["kept"].mean().sort_values(ascending=False)
in_order = common.set_index("class").loc[means.index].reset_index()
bars(estimates_by(in_order, "class", "kept"), "neighbours that both spaces have", "share kept")

# %%
lost = np.array([~np.isin(first, second) for first, second in zip(*near, strict=True)])
own = classes[near[0]] == classes[:, None]
both = own.any(1) & ~own.all(1)
inside = (lost & own).sum(1)[both] / own.sum(1)[both]
between = (lost & ~own).sum(1)[both] / (~own).sum(1)[both]
gap = paired_difference(inside, between)
found = "alike" if gap.p >= 0.05 else "inside" if gap.mean > 0 else "between"
shares = f"{inside.mean():.0%} are lost, of others {between.mean():.0%}"
print(f"We observe: of neighbours of a product's own class {shares}:")
print(f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] over {gap.n} products, p = {gap.p:.4f}.")
guessed(guess_lost, found, of=("inside", "between", "alike"))

# %% [markdown]
# ## Summary
#
# - One edit at a time, against a pinned ranking, tells more than two rankings side by side.
# - A map is where to look; the neighbours are in the space.
#
# **Exercise 1.** Of how many products does the first map (`rows`, `places`, `chart.k`) tear away at least
# half of the neighbours?

# %% tags=["exercise"]
answer = None  # yours: a number of products
check(answer, solutions.half_torn(rows, places, chart.k))

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = (geometry.torn(rows, places, chart.k).mean(axis=1) >= 0.5).sum()
check(answer, solutions.half_torn(rows, places, chart.k))

# %% [markdown]
# **Exercise 2.** Ask the toy's query (`query`) in each order of its conditions: how many different products
# come first? `query.reordered((1, 0, 2))` is one order, `index.search(query, 1)` one hit.

# %% tags=["exercise"]
answer = None  # yours: a number of products
check(answer, solutions.first_hits(index, query))

# %% tags=["solution"] jupyter={"source_hidden": true}
orders = permutations(range(len(query.conditions)))
answer = len({index.search(query.reordered(order), 1)[0].product.id for order in orders})
check(answer, solutions.first_hits(index, query))
