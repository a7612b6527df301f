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
# # Condition order: does it matter which wish comes first?
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/03_condition_order.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/03_condition_order.ipynb)
#
# **Question.** *"The brand of A and the colour of B"* and *"the colour of B and the brand of A"* ask for
# the same. Does a model answer the same? If not, does the first wish weigh more, or the last? And is there
# a wish it does not hear at all?
#
# Measured on **coral-mini** and MERIT-mini; the paper's model ([arXiv
# 2506.03144](https://arxiv.org/abs/2506.03144)) may do otherwise. MODEL and DATA take any other.
#
# About 2 minutes on two cores · some practice

# %% tags=["install"]
# In the workbench's own environment this does nothing. On Colab or Kaggle it installs the package:
# by its name, or put the path of a wheel of your own in its place.
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("coral_lab") is None:
    get_ipython().run_line_magic("pip", "install --quiet coral-lab[all]")

# %% tags=["parameters"]
MODEL = "mini"  # or "Bia/CORAL", or a folder
DATA = "mini"  # or "WeiChow/merit", a folder with its files, a table of your own
QUERIES = 150
EACH_PLACE = 60  # of these, queries of which each condition is taken away in each place
PRODUCTS = 3000  # to search among: all right answers and others
CONDITIONS = 3  # of each query: six orders; nearly all of MERIT's queries have 2
K = 10

# %%
from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

import coral_lab as cl
from coral_lab.metrics import estimate, holm, paired_difference
from coral_lab.results import Gallery
from coral_lab.study import (
    attribution,
    compare_edits,
    conditions_met,
    edits,
    heeded,
    judged,
    solutions,
    sweep,
)
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import bars, differences, estimates_by, matrix

# %%
model = cl.load(MODEL)
shop = cl.dataset(DATA, on_error="skip", sample=500)
queries = shop.where(conditions=CONDITIONS).having("queries").queries[:QUERIES]
index = cl.index(model, shop.smaller_pool(queries, PRODUCTS))
print(f"{len(queries)} queries of {CONDITIONS} conditions over {len(index.products):,} products")

# %% [markdown]
# ## A toy: a reader who tires
#
# Suppose a model gives the first wish weight 0.5, the second 0.3 and the third 0.2, and a product scores
# the weights of the wishes that it meets. Product A meets brand and colour, product B colour and size,
# product C size alone and brand.
#
# **Prediction.** In how many of the six orders does A win?

# %%
guess_wins = None  # yours: a number from 0 to 6

# %%
wishes = ["brand", "colour", "size"]
meets = pd.DataFrame({"A": [1, 1, 0], "B": [0, 1, 1], "C": [1, 0, 1]}, index=wishes)
weights = [0.5, 0.3, 0.2]
toy = {", ".join(order): np.array(weights) @ meets.loc[list(order)] for order in permutations(wishes)}
toy = pd.DataFrame(toy, index=meets.columns).T
toy.assign(wins=toy.idxmax(axis=1))

# %%
guessed(guess_wins, int((toy.idxmax(axis=1) == "A").sum()))

# %% [markdown]
# Whoever meets the first two wishes wins. No product is better than another, and yet the order decides:
# that is what a bias of place looks like, and why every order has to be asked.
#
# ## One query, every order
#
# The order is the only thing that changes: the same pictures, the same titles, the same wishes.

# %%
query = queries[0]
query

# %%
one = sweep(index, [query], edits.orders, k=K)
columns = ["edit", "rank", "rank_shift", "score", "spread", "overlap", "first"]
one[columns].round(3)

# %% [markdown]
# ## All of them
#
# `overlap` (of the first ten hits), `moved` (by how many ranks the first right answer goes up or down) and
# `flipped` (R@1 changed) are against the order asked; the intervals are over queries.
#
# **Prediction.** Of a hundred queries, how many are answered in some of their orders and not in others?

# %%
guess_some = None  # yours: a number from 0 to 100

# %%
table = sweep(index, queries, edits.orders, k=K)
table = table[table["edit"] != "as asked"].assign(right=lambda t: (t["rank"] == 1).astype(float))
asked = table["edit"].iloc[0]  # "0-1-2"
other = table[table["edit"] != asked].assign(moved=lambda t: t["rank_shift"].abs())
for name in ("overlap", "moved", "flipped"):
    print(f"{name:8s} {estimate(other.groupby('query')[name].mean().to_numpy(float))}")

# %%
right = table.pivot(index="query", columns="edit", values="right")
shares = {"the order asked": right[asked], "some order": right.max(axis=1), "every order": right.min(axis=1)}
for name, values in shares.items():
    print(f"We observe: right in {name} {estimate(values.to_numpy())}")
guessed(guess_some, 100 * float((right.max(axis=1) - right.min(axis=1)).mean()), within=5)

# %% [markdown]
# ## Is one order better than another?
#
# R@1 of each order against the order asked, on the same queries: paired permutation tests, corrected for
# being several (Holm). One rule in this notebook: *p (Holm) < 0.05, and two things can be told apart*.
#
# **Prediction.** The queries' own order is random. Should any order win?

# %%
tests = compare_edits(table, "edit", asked)
tests.round(4)

# %%
differences(tests, f"R@1, against the order asked ({asked})", "difference in R@1")

# %%
told = tests.index[tests["p (Holm)"] < 0.05]
print(f"We observe: {', '.join(told) or 'no order'} can be told apart from the one asked.")

# %% [markdown]
# ## Which place is heard?
#
# Two measures of a place. The coarse one: does the first hit meet the condition that stands there? The
# fine one, in scores: how much more does that condition add to products that meet it than to others? Over
# all orders each condition stands equally often in each place, so a difference comes from the place alone.
#
# **Prediction.** Which place is heard less than every other?

# %%
guess_place = None  # yours: first, middle, last or none

# %%
met = conditions_met(table["edited"], [shop.product(id) for id in table["first"]])
every = [edited for query in queries[:EACH_PLACE] for _, edited in edits.orders(query)]
added = heeded(index, every).rename(columns={"condition": "place"})
words = ["first", *(["middle"] if CONDITIONS == 3 else map(str, range(2, CONDITIONS))), "last"]
measures = {"first hit meets it": met.rename(columns={"met": "value"})}
measures["gain in cosine"] = added.rename(columns={"gain": "value"})
for name, own in measures.items():
    means = own.groupby(["query", "place"])["value"].mean().unstack().dropna()
    measures[name] = means.set_axis(words, axis=1)

# %% [markdown]
# Before any pair: are all places alike? If they are, the values of a query can be dealt out to its places
# anew, and the places' means lie as far apart as before. One test for all places, so that nobody picks the
# pair that looks best.


# %%
def apart(*places, axis):
    return np.var([own.mean(axis) for own in places], axis=0)


deal = {"permutation_type": "samples", "alternative": "greater", "vectorized": True, "batch": 256, "rng": 0}
p = [permutation_test(tuple(own.to_numpy().T), apart, **deal).pvalue for own in measures.values()]
for (name, own), corrected in zip(measures.items(), holm(np.array(p)), strict=True):
    means = ", ".join(f"{place} {mean:.3f}" for place, mean in own.mean().items())
    verdict = "can be told apart" if corrected < 0.05 else "cannot be told apart"
    print(f"We observe, {name}: {means}; the places {verdict} (p (Holm) {corrected:.2g}).")

# %% [markdown]
# Then every pair of places, the middle too.

# %%
pairs = {}
for (name, own), (a, b) in product(measures.items(), combinations(words, 2)):
    pairs[name, f"{a} − {b}"] = vars(paired_difference(own[a].to_numpy(), own[b].to_numpy()))
pairs = pd.DataFrame(pairs).T.rename(columns={"mean": "difference"})
pairs["p (Holm)"] = holm(pairs["p"].to_numpy())
pairs.drop(columns="n").round(4)

# %%
gain = pairs.loc["gain in cosine"]
differences(gain, "What a condition adds, by its place", "difference in gain (cosine)")

# %%
told = gain[gain["p (Holm)"] < 0.05]
for pair, row in told.iterrows():
    ends = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
    print(f"We observe, in gain: {pair} {row['difference']:+.3f} {ends}, the two can be told apart.")
lower = [pair.split(" − ")[int(row["difference"] > 0)] for pair, row in told.iterrows()]
least = next((word for word in words if lower.count(word) == len(words) - 1), "none")
guessed(guess_place, least, of=(*words, "none"))

# %% [markdown]
# ## Which attribute does a model ignore?
#
# Take a condition away and watch the scores: *left out* of the sentence, or *neutralised*, with a grey
# picture and no title in its place. Leaving out shortens the sentence, neutralising shows the model
# something that it has never seen. So the rule asks both: an attribute is **heard** if it adds more than 0
# both ways, each with p (Holm) < 0.05. Of any other it cannot be told that it is not ignored.
#
# **Prediction.** Of which attributes can it not?

# %%
guess_ignored = None  # yours: a set such as {"size", "origin"}; set() for none

# %%
takes = {"left out": edits.dropped, "neutralised": edits.neutralised}
gains = {name: heeded(index, queries, how=how).dropna(subset=["gain"]) for name, how in takes.items()}
order = gains["left out"].groupby("attribute")["gain"].mean().sort_values(ascending=False).index
heard = {name: estimates_by(own, "attribute", "gain") for name, own in gains.items()}
heard = {name: {attribute: own[attribute] for attribute in order} for name, own in heard.items()}
bars(heard, "What a condition adds to products that meet it, beyond others", "gain in cosine")

# %%
tests = {}
for (name, own), attribute in product(gains.items(), order):
    values = own.loc[own["attribute"] == attribute, "gain"].to_numpy()
    tests[name, attribute] = vars(paired_difference(values, np.zeros(len(values))))
tests = pd.DataFrame(tests).T
tests["above 0"] = (holm(tests["p"].to_numpy(float)) < 0.05) & (tests["mean"] > 0)
both = tests["above 0"].unstack(0).all(axis=1)
print(f"We observe: heard both ways: {', '.join(both.index[both]) or 'none'};")
print(f"cannot be told from being ignored: {', '.join(both.index[~both]) or 'none'}.")
guessed(guess_ignored, set(both.index[~both]))

# %% [markdown]
# The same question asked of the ranking: what does an intervention cost? A condition left out or
# neutralised, a reference swapped for one with another value (the old answer *should* fall), pictures or
# titles taken away, pictures described.
#
# **Prediction.** Which costs more, to take the titles away or the pictures?

# %%
swap = edits.swapped(edits.shown_by(shop.queries))
kinds = [edits.dropped, edits.neutralised, swap, edits.images_only, edits.text_only, edits.captioned]
costs = sweep(index, queries, kinds, k=K).assign(right=lambda t: (t["rank"] == 1).astype(float))
titles = {"without": "one left out", "neutral": "one neutralised", "another": "one swapped"}
costs["kind"] = [titles.get(edit.split()[0], edit) for edit in costs["edit"]]
each = costs.groupby(["query", "kind"], sort=False)["right"].mean().unstack()

# %%
cost = {}
for kind in each.columns.drop("as asked"):
    own = each[[kind, "as asked"]].dropna().to_numpy()
    cost[kind] = vars(paired_difference(own[:, 0], own[:, 1]))
cost = pd.DataFrame(cost).T.rename(columns={"mean": "difference"}).sort_values("difference")
cost["p (Holm)"] = holm(cost["p"].to_numpy())
differences(cost, "The old answer comes first, against the query as asked", "difference in R@1")

# %%
told = cost.index[cost["p (Holm)"] < 0.05]
print(f"We observe: R@1 {each['as asked'].mean():.2f} as asked;")
print(f"can be told apart from it: {', '.join(told) or 'nothing'}.")
gap = paired_difference(each["text only"].to_numpy(), each["images only"].to_numpy())
side = "pictures cost more" if gap.mean < 0 else "titles cost more"
side = side if gap.p < 0.05 else "neither can be told to cost more"
print(f"Without pictures, less without titles: {gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]; {side}.")

# %% [markdown]
# The paper names the same failure, a model that sees only global semantics and misses single conditions. Its
# table of results has no figure for the order or for single conditions, so none can stand beside ours.
#
# ## Attribution: one query, hit by hit
#
# How much each condition adds to a hit's score; a hit that does not meet a condition should gain less by
# it.

# %%
index.search(query, 5)

# %%
parts = attribution(index, query, k=5)
parts["asked"] = parts["attribute"] + " " + parts["value"]
grid = parts.pivot(index="rank", columns="asked", values="score_drop").rename_axis(index="hit", columns=None)
matrix(grid, "What each condition adds to a hit's score", "cosine", middle=0.0)

# %%
parts.pivot(index="rank", columns="asked", values=["met", "rank_without"])

# %% [markdown]
# ## A query that flips
#
# The one that finds the most different first hits: what is asked, and the first hit in each order.

# %%
changes = table.groupby("query")["first"].nunique().sort_values(ascending=False, kind="stable")
print(
    f"We observe: {(changes > 1).mean():.0%} of the queries have more than one first hit over their orders."
)
next(query for query in queries if query.id == changes.index[0])

# %%
flips = table[table["query"] == changes.index[0]]
marks = flips["edit"] + np.where(flips["rank"] == 1, " ✓", " ✗")
Gallery([shop.product(id) for id in flips["first"]], list(marks), size=96)

# %% [markdown]
# ## Summary
#
# - Compare orders on the same queries, with a paired test: single queries flip even where no order can be
#   told from another.
# - Ask first whether all places are alike, then which differ. A look at the two ends misses the middle.
# - What a place weighs is told by permuting, what a condition weighs by taking it away, in more than one
#   way.
#
# ## Exercises
#
# **1.** Of how many queries does the right answer come first in another order, and not in the one asked?
# (`table` has a row for each query and order.)

# %% tags=["exercise"]
answer = None  # yours: a whole number
check(answer, solutions.rescued_by_order(table))

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = int(((right[asked] == 0) & (right.max(axis=1) == 1)).sum())
check(answer, solutions.rescued_by_order(table))

# %% [markdown]
# **2.** If the order is noise, average it out: embed each of the first 30 queries in all its orders, take
# the mean of the embeddings, and search. What is R@1? Predict first whether it is above that of the order
# asked. (`index.encode` embeds queries, `judged` measures embeddings of your own.)

# %% tags=["exercise"]
answer = None  # yours: a number from 0 to 1
check(answer, solutions.r_at_1_of_all_orders(index, queries[:30]), within=0.04)

# %% tags=["solution"] jupyter={"source_hidden": true}
some = queries[:30]
rows = index.encode([edited for query in some for _, edited in edits.orders(query)])
result = judged(index, some, rows.reshape(len(some), -1, rows.shape[1]).mean(axis=1))
answer = result.metrics["R@1"].mean
print(
    f"in the order asked {right.loc[[query.id for query in some], asked].mean():.2f}, all orders {answer:.2f}"
)
check(answer, solutions.r_at_1_of_all_orders(index, some), within=0.04)
