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
# # A tour of the data: what is asked, and where can the answer be seen?
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/01_merit_tour.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/01_merit_tour.ipynb)
#
# **Question.** MERIT asks for products by *several* conditions, each shown by another product
# ([arXiv 2506.03144](https://arxiv.org/abs/2506.03144)). Before any model: what is in such data, and what
# would a model have to see, and to read, to answer?
#
# By default this is **MERIT-mini**, a drawn catalogue with MERIT's structure. With `DATA = "WeiChow/merit"`,
# or a folder with its files, the same cells show MERIT itself.

# %% tags=["install"]
# In the workbench's own environment this does nothing. On Colab or Kaggle it installs the package:
# by its name, or put the path of a wheel of your own in its place.
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("coral_lab") is None:
    get_ipython().run_line_magic("pip", "install --quiet coral-lab[all]")

# %% tags=["parameters"]
DATA = "mini"  # or "WeiChow/merit", or a folder with its files
SPLIT = "test"
SHOWN = 8  # pictures in a row
SEED = 0

# %%
import random
from collections import Counter

import pandas as pd
import plotly.express as px

import coral_lab as cl
from coral_lab.results import Gallery
from coral_lab.study.plots import PALETTE

pd.set_option("display.max_colwidth", None)  # titles in full
shop = cl.dataset(DATA, SPLIT, on_error="skip")
chance = random.Random(SEED)
print(
    f"{shop.name}: {len(shop.products):,} products, {len(shop.queries):,} queries, {len(shop.skipped)} "
    f"lines skipped"
)

# %% [markdown]
# ## Products
#
# A picture, a title in one of five languages, a class, a country, and attributes: the ground truth, of which
# picture and title show only some.

# %%
shop.products[0]

# %%
classes = sorted({product.class_name for product in shop.products})
some = [next(p for p in shop.products if p.class_name == name) for name in classes]
Gallery(some, classes, size=96)

# %%
facts = pd.DataFrame(
    {"class": [p.class_name for p in shop.products], "language": [p.language for p in shop.products]}
)
counts = facts.value_counts().rename("products").reset_index()
figure = px.bar(
    counts,
    x="class",
    y="products",
    color="language",
    color_discrete_sequence=PALETTE,
    template="simple_white",
)
figure.update_layout(
    height=320, margin={"l": 50, "r": 10, "t": 20, "b": 40}, xaxis={"categoryorder": "category ascending"}
)

# %% [markdown]
# ## One listing, several variants
#
# Shops list a product once, in several colours or sizes. Half of the queries are made from such siblings:
# they agree in one attribute and differ in another, so the near misses are *very* near. **Prediction.** Look
# at the row below: which single attribute tells each product from its neighbour?

# %%
query = next(q for q in shop.queries if len(q.hard_negatives) > 1)
siblings = [shop.product(id) for id in (*query.positives[:1], *query.hard_negatives)][:SHOWN]
Gallery(siblings, [", ".join(v for vs in p.attributes.values() for v in vs) for p in siblings])

# %% [markdown]
# ## Queries
#
# A wanted class, conditions in order, and free text. The reference products show the values; no word says
# them.

# %%
query

# %%
Gallery([shop.product(id) for id in query.positives[:SHOWN]])

# %%
conditions = Counter(len(q.conditions) for q in shop.queries)
asked = Counter(c.attribute for q in shop.queries for c in q.conditions)
print("conditions a query:", dict(sorted(conditions.items())))
print("asked for most:", dict(asked.most_common(8)))

# %% [markdown]
# **How many right answers has a query?** MERIT keeps a query only if they are more than none and under 5% of
# the pool.
# **Prediction.** Will queries with more conditions have more right answers, or fewer?

# %%
answers = pd.DataFrame(
    {
        "conditions": [len(q.conditions) for q in shop.queries],
        "right answers": [len(q.positives) for q in shop.queries],
    }
)
by_conditions = (
    answers.groupby("conditions")["right answers"].describe()[["count", "mean", "50%", "max"]].round(1)
)
by_conditions

# %%
fewest, most = by_conditions["mean"].iloc[0], by_conditions["mean"].iloc[-1]
print(
    f"We observe: {fewest:.1f} right answers on average with {by_conditions.index[0]} conditions, "
    f"{most:.1f} with {by_conditions.index[-1]};"
)
print(f"at most {answers['right answers'].max() / len(shop.products):.1%} of the pool.")

# %% [markdown]
# ## The same title in five languages
#
# Any product of MERIT-mini can be titled in any of its languages, so the language can change while everything
# else stays (MERIT has one title a product).

# %%
product = chance.choice(shop.products)
retitle, languages = shop.traits.retitle, shop.traits.languages
versions = [retitle(product, language) for language in languages] if retitle else [product]
pd.DataFrame({"language": [v.language for v in versions], "title": [v.title for v in versions]})

# %% [markdown]
# ## Out of distribution
#
# The authors hold back three languages, three classes and three attributes: a model trained without them is
# tested on them alone. `cl.merit(…, ood="class")` gives these splits by name.

# %%
pd.DataFrame(
    {
        kind: {
            "held back": ", ".join(values),
            "queries unseen": len(shop.out_of_distribution(kind).queries),
            "queries seen": len(shop.out_of_distribution(kind, unseen=False).queries),
        }
        for kind, values in shop.traits.held_back.items()
    }
).T

# %% [markdown]
# The paper's own counts, for MERIT as a whole: 135,000 products, 320,000 queries (310,000 of them for
# training), 116 attributes with 2,594 values, a test pool of 51,177 products; most queries have two
# conditions.
#
# ## Summary
#
# - Answers must agree with *every* condition; near misses agree with all but one, and are in the pool.
# - Some attributes can only be seen, others only read. A model without one of the two senses cannot answer
#   all.
#
# **Exercise.** Choose a class with `shop.where(class_name="shoes")` and an attribute with
# `attribute="material"`. How many of those queries could be answered from titles alone? From pictures alone?
