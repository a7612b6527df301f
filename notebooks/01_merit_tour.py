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
#
# About 1 minute on two cores · first steps

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
from coral_lab.mini.drawing import Drawing
from coral_lab.query import right_answers
from coral_lab.results import Gallery
from coral_lab.study import solutions
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import TEMPLATE

pd.set_option("display.max_colwidth", None)  # titles in full
shop = cl.dataset(DATA, SPLIT, on_error="skip")
chance = random.Random(SEED)
print(
    f"{shop.name}: {len(shop.products):,} products, {len(shop.queries):,} queries, {len(shop.skipped)} "
    f"lines skipped"
)

# %% [markdown]
# ## A toy first: four products and a query
#
# Wanted is a backpack in the colour of product 1, with the pattern of product 2. A *right answer* has the
# wanted class and meets every condition; a *near miss* has the class and fails one condition.

# %%
facts = {
    "a": ("backpack", "red", "plain"),
    "b": ("backpack", "red", "stripes"),
    "c": ("backpack", "blue", "plain"),
    "d": ("shoes", "red", "stripes"),
    "product 1": ("backpack", "red", "dots"),
    "product 2": ("shoes", "green", "stripes"),
}
drawn = {}
for name, (kind, colour, pattern) in facts.items():
    picture = Drawing(kind, {"backpack": "daypack"}.get(kind, "sneaker"), colour, pattern, "Zemplo", "black")
    shown = {"color": colour, "pattern": pattern}
    drawn[name] = cl.Product(name, image=picture, class_name=kind, attributes=shown)
Gallery(list(drawn.values()), list(drawn))

# %% [markdown]
# **Prediction.** By hand: which of a, b, c and d are right answers, which near misses?

# %%
guess_right = None  # yours: a set of letters, such as {"a", "c"}
guess_near = None  # yours: a set of letters

# %%
of_colour = cl.Condition("color", drawn["product 1"], "red")
of_pattern = cl.Condition("pattern", drawn["product 2"], "stripes")
toy = cl.Query("toy", "backpack", (of_colour, of_pattern), text=".")
pool = [drawn[name] for name in "abcd"]
right = set(right_answers(toy, pool))
failed = {product.id: [c.met_by(product) for c in toy.conditions].count(False) for product in pool}
near = {p.id for p in pool if p.class_name == toy.class_name and failed[p.id] == 1}
assert (right, near) == ({"b"}, {"a"})  # c fails both conditions; d meets both, and is no backpack
guessed(guess_right, right)

# %%
guessed(guess_near, near)

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
languages = pd.DataFrame(
    {"class": [p.class_name for p in shop.products], "language": [p.language for p in shop.products]}
)
counts = languages.value_counts().rename("products").reset_index().sort_values(["language", "class"])
figure = px.bar(counts, x="products", y="class", facet_col="language", template=TEMPLATE)
figure.for_each_annotation(lambda note: note.update(text=note.text.removeprefix("language=")))
figure.update_yaxes(autorange="reversed")
figure.update_layout(height=380, margin={"l": 90, "r": 10, "t": 30, "b": 40})

# %% [markdown]
# ## One listing, several variants
#
# Shops list a product once, in several colours or sizes. Half of the queries are made from such siblings:
# they agree in one attribute and differ in another, so the near misses are *very* near. **Prediction.** Of
# ten such siblings that are no answers, how many fail just one condition?

# %%
guess_siblings = None  # yours: a number from 0 to 10

# %%
query = next(q for q in shop.queries if len(q.hard_negatives) > 1)
siblings = [shop.product(id) for id in (*query.positives[:1], *query.hard_negatives)][:SHOWN]
differ = [[a for a in p.attributes if p.attributes[a] != siblings[0].attributes.get(a)] for p in siblings[1:]]
Gallery(siblings, ["an answer", *("differs in " + ", ".join(own) for own in differ)])

# %%
pairs = [(q, shop.product(id)) for q in shop.queries for id in q.hard_negatives]
fails = pd.Series([[c.met_by(sibling) for c in q.conditions].count(False) for q, sibling in pairs])
print("We observe, siblings by the number of conditions they fail:", fails.value_counts().to_dict())
guessed(guess_siblings, round(10 * (fails == 1).mean(), 1), within=1)

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
print("asked for:", dict(asked.most_common(8)))

# %% [markdown]
# **How many right answers has a query?** MERIT keeps a query only if they are more than none and under 5% of
# the pool. **Prediction.** Will queries with more conditions have more right answers, or fewer?

# %%
guess_answers = None  # yours: more or fewer

# %%
answers = pd.DataFrame(
    {
        "conditions": [len(q.conditions) for q in shop.queries],
        "right answers": [len(q.positives) for q in shop.queries],
    }
)
by_conditions = answers.groupby("conditions")["right answers"].describe()[["count", "mean", "50%", "max"]]
by_conditions.round(1)

# %%
means, share = by_conditions["mean"], answers["right answers"].max() / len(shop.products)
print(f"We observe: {means.iloc[0]:.1f} right answers on average with {means.index[0]} conditions,", end=" ")
print(f"{means.iloc[-1]:.1f} with {means.index[-1]}; no query has more than {share:.1%} of the pool.")
guessed(guess_answers, "fewer" if means.iloc[-1] < means.iloc[0] else "more", of=("more", "fewer"))

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
# **Exercise 1.** `query` from above again: how many products of the pool are near misses, of the wanted class
# and failing exactly one condition? Count as for the toy.

# %% tags=["exercise"]
answer = None  # yours: a number
check(answer, solutions.near_misses(query, shop.products))

# %% tags=["solution"] jupyter={"source_hidden": true}
of_class = [product for product in shop.products if product.class_name == query.class_name]
answer = sum([c.met_by(product) for c in query.conditions].count(False) == 1 for product in of_class)
check(answer, solutions.near_misses(query, shop.products))

# %% [markdown]
# **Exercise 2.** How many queries could be answered by reading alone: all their conditions ask for attributes
# that no picture shows (`shop.traits.textual`)?

# %% tags=["exercise"]
answer = None  # yours: a number
check(answer, solutions.titles_alone(shop))

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = sum(all(c.attribute in shop.traits.textual for c in q.conditions) for q in shop.queries)
check(answer, solutions.titles_alone(shop))
