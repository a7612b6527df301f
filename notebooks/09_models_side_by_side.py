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
# # Models side by side: is one better, do they err alike, do they know more together?
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/09_models_side_by_side.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/09_models_side_by_side.ipynb)
#
# **Question.** Two models have been measured, and one has the higher R@1. Is it better, or was it chance? Do
# the two find the same things? Would their rankings together find more? And how much of an embedding does it
# take?
#
# Everything here is **coral-mini** in three stages of its training, on MERIT-mini, a drawn catalogue. To be
# quick we ask some of its queries over some of its products: all right answers and others. A smaller pool is
# easier, so these figures are higher than those of the whole catalogue, and they say nothing about the
# paper's model ([arXiv 2506.03144](https://arxiv.org/abs/2506.03144)). MODELS takes any checkpoints,
# `Bia/CORAL` among them.
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
DATA = "mini"  # or "WeiChow/merit", a folder with its files, a table of your own
MODELS = ["mini", "mini-contrastive", "mini-base"]  # or "Bia/CORAL", folders, loaded models
QUERIES = 400
PRODUCTS = 1200  # to search among: all right answers and others
DIMS = (8, 16, 32, 64, 96, 128)

# %%
from dataclasses import replace
from itertools import combinations

import pandas as pd

import coral_lab as cl
from coral_lab.metrics import estimate, holm, paired_difference
from coral_lab.study import fused, solutions, truncated, truncations
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import bars, differences

# %% [markdown]
# ## 1. A toy: two rankings made one
#
# Reciprocal rank fusion adds 1 / (k + rank) over the rankings. Below, *bold* is first in one ranking and not
# in the other at all; *steady* is third in both. **Prediction.** Which of them comes first with k = 60?

# %%
guess_fused = None  # yours: bold, other, steady or rival

# %%
ranks = pd.DataFrame(
    {"ranking A": [1, 2, 3, None], "ranking B": [None, None, 3, 1]},
    index=["bold", "other", "steady", "rival"],
)
worth = ranks.assign(**{f"k = {k}": (1 / (k + ranks)).sum(axis=1).round(4) for k in (0, 60)})
worth

# %%
tied = worth.index[worth["k = 0"] == worth["k = 0"].max()]
print(f"We observe: with k = 0 {' and '.join(tied)} come first, with k = 60 {worth['k = 60'].idxmax()}.")
guessed(guess_fused, worth["k = 60"].idxmax(), of=tuple(ranks.index))

# %% [markdown]
# With k = 60 the places hardly differ in worth, and what both rankings have wins: fusion asks for agreement.
# That helps where two models err in different places, and hurts where one is often right alone.
#
# ## 2. Side by side
#
# One call measures all of them on the same queries and the same pool, one model after the other.
# **Prediction.** In how many of a hundred queries does the last of MODELS, here the base, find a right answer
# first?

# %%
guess_last = None  # yours: a number from 0 to 100

# %%
shop = cl.dataset(DATA, on_error="skip", sample=500).having("queries")
queries = shop.queries[:QUERIES]
small = replace(shop, products=shop.smaller_pool(queries, PRODUCTS), queries=queries)
found = cl.compare(MODELS, small, settings=cl.Settings(progress=False, on_error="skip"))
found

# %%
found.figure()

# %%
table = found.table().sort_values("R@1", ascending=False)
first, last = table.index[0], table.index[-1]
said = ", ".join(f"{own:.3f} for {name}" for name, own in table["R@1"].items())
print(f"We observe: R@1 is {said}.")
guessed(guess_last, round(100 * table.loc[list(found.results)[-1], "R@1"]), within=5)

# %% [markdown]
# ## 3. Better, or chance?
#
# Intervals of two models may overlap although one is surely better: they are of different queries drawn anew,
# and here both had the same. A paired test looks at the queries where the two differ. There are several
# pairs, so Holm's correction: p (Holm) below 0.05, here and everywhere, means that two can be told apart.
# **Prediction.** Of the pairs below, how many can be?

# %%
guess_pairs = None  # yours: a number of pairs

# %%
tests = found.tests()
tests.round(4)

# %%
differences(tests.set_axis(tests["model"] + " − " + tests["against"]), "R@1 on the same queries")

# %%
for row in tests.to_dict("records"):
    can = "can" if row["p (Holm)"] < 0.05 else "cannot"
    print(f"We observe: {row['model']} and {row['against']} {can} be told apart: they differ in", end=" ")
    print(f"{row['wins'] + row['losses']} queries, of which the first gets {row['wins']}.")
guessed(guess_pairs, (tests["p (Holm)"] < 0.05).sum())

# %% [markdown]
# Is the first better at everything? Each column is a model; 0 is white and 1 dark in every such figure.

# %%
found.heat_map("attribute")

# %% [markdown]
# Two shades tell little: so for each attribute the difference between the first and the last, on the queries
# that ask for it, again with Holm's correction. **Prediction.** Is there an attribute for which the two
# cannot be told apart?

# %%
hits = {name: result.per_query["R@1"].to_numpy() for name, result in found.results.items()}
asked = found.results[first].per_query["attributes"].explode()
rows = {}
for attribute, own in asked.groupby(asked):
    rows[f"{attribute} ({len(own)})"] = vars(paired_difference(hits[first][own.index], hits[last][own.index]))
by = pd.DataFrame(rows).T.rename(columns={"mean": "difference"}).sort_values("difference", ascending=False)
by["p (Holm)"] = holm(by["p"].to_numpy(float))
differences(by, f"{first} − {last} by attribute (queries)", "difference in R@1")

# %%
same = list(by.index[by["p (Holm)"] >= 0.05])
print(f"We observe: the two can be told apart for {len(by) - len(same)} of {len(by)} attributes;")
print(f"for which they cannot: {', '.join(same) or 'none'}.")

# %% [markdown]
# ## 4. Where they differ
#
# Queries that the model with the highest R@1 gets and the one with the lowest does not, and the other way
# round, each with both first hits. Ticks and crosses say what a hit shares with the query.

# %%
found.differing(first, last, count=2)

# %%
found.differing(last, first, count=2)

# %% [markdown]
# ## 5. Two rankings made one
#
# Suppose somebody always knew which of two models to trust: that many queries could be right. Fusion knows
# nothing but the two rankings. **Prediction.** Of the fusions below, three ways for each pair, how many are
# better than the better of their two models, by the rule of above?

# %%
guess_help = None  # yours: a number of fusions

# %%
pairs = [sorted(pair, key=lambda name: -hits[name].mean()) for pair in combinations(hits, 2)]
ways, values = ("rrf", "z", "min-max"), {}
for pair in pairs:
    own = {"the higher one": estimate(hits[pair[0]]), "the other": estimate(hits[pair[1]])}
    own |= {way: fused([found.results[name] for name in pair], way).metrics["R@1"] for way in ways}
    values[" + ".join(pair)] = own | {"whichever is right": estimate(hits[pair[0]].clip(hits[pair[1]]))}
pd.DataFrame({name: {key: str(value) for key, value in own.items()} for name, own in values.items()})

# %% [markdown]
# Each fusion against the one of its two models that has the higher R@1, on the same queries:

# %%
rows = {}
for pair in pairs:
    for way in ways:
        together = fused([found.results[name] for name in pair], way).per_query["R@1"].to_numpy()
        rows[f"{way}: {' + '.join(pair)}"] = vars(paired_difference(together, hits[pair[0]]))
fusions = pd.DataFrame(rows).T.rename(columns={"mean": "difference"})
fusions["p (Holm)"] = holm(fusions["p"].to_numpy(float))
fusions[["difference", "low", "high", "p (Holm)"]].round(4)

# %%
differences(fusions, "R@1 of a fusion, less that of its higher model", "difference in R@1")

# %%
sure = fusions[fusions["p (Holm)"] < 0.05]
gained, lost = (list(sure.index[sure["difference"] * sign > 0]) for sign in (1, -1))
print(f"We observe: of {len(fusions)} fusions {len(gained)} are better: {', '.join(gained) or 'none'};")
print(f"{len(lost)} are worse: {', '.join(lost) or 'none'};")
print(f"{len(fusions) - len(sure)} cannot be told apart from their model.")
guessed(guess_help, len(gained))

# %% [markdown]
# Fusion gives both models the same say. It has something to gain where two are about as good and err in
# different places. A much weaker partner can outvote the other, and two that were trained alike have little
# to tell each other.
#
# ## 6. Fewer dimensions
#
# An embedding cut to its first dimensions and normalised again takes less room and time. Some models are
# trained so that this costs little (Kusupati et al. 2022); these were not. **Prediction.** With half of the
# dimensions, in how many of a hundred queries does the first model still find a right answer first?

# %%
guess_half = None  # yours: a number from 0 to 100

# %%
kept = {
    name: {str(dim): truncated(own, dim).metrics["R@1"] for dim in DIMS if dim <= found.costs[name].dim}
    for name, own in found.asked.items()
}
figure = bars(kept, "R@1 by the number of dimensions that are kept", "R@1")
figure.update_xaxes(title="first dimensions")

# %%
half = found.costs[first].dim // 2
cut = truncations(found.asked[first], (half, 2 * half)).set_index("dim")
cut[["bytes an embedding", "R@1", "R@1 low", "R@1 high", "MRR@10"]].round(3)

# %%
change = paired_difference(truncated(found.asked[first], half).per_query["R@1"].to_numpy(), hits[first])
print(f"We observe: with {half} of {2 * half} dimensions {first} has R@1 {cut['R@1'].iloc[0]:.3f}, not")
interval = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
print(f"{cut['R@1'].iloc[1]:.3f}: {interval}, p = {change.p:.4f}.")
guessed(guess_half, round(100 * cut["R@1"].iloc[0]), within=5)

# %% [markdown]
# ## 7. What it costs
#
# Milliseconds are of a few items, encoded apart with no store, so that what was kept from a run before is not
# taken for fast. They are of this machine.

# %%
found.cost_figure()

# %%
slow, cost = table["ms a query"], table.loc[first]
print(f"We observe: a query takes {slow.min():.1f} to {slow.max():.1f} ms. An embedding of {first}")
print(f"takes {cost['bytes an embedding']} bytes, its weights {cost['weight bytes'] / 1e6:.1f} MB.")

# %% [markdown]
# coral-mini's three have one architecture: what lies between them in time is the machine's noise. A figure
# about speed is worth as much as the machine was idle.
#
# ## 8. What has been published
#
# Another table, of other data: models of billions of parameters over MERIT's photographs. For orientation,
# not for comparison.

# %%
published = found.published()
print(found.note)
columns = ["method", "size", "input", "R@1", "R@10", "MRR@10", "source"]
published[columns].style.hide(axis="index").format(precision=4)

# %% [markdown]
# ## Summary
#
# - Models are compared on the same queries, by paired tests, corrected for being several.
# - Two models with one R@1 may find different things; the gallery shows them, and fusion tells whether that
#   can be used.
# - A figure about speed needs to say what was timed.
#
# **Exercise 1.** Of the queries that `first` gets wrong at R@1, how many does `last` get right?

# %% tags=["exercise"]
answer = None  # yours: a number of queries
check(answer, solutions.found_only_by(found.results[last], found.results[first]))

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = ((hits[first] == 0) & (hits[last] == 1)).sum()
check(answer, solutions.found_only_by(found.results[last], found.results[first]))

# %% [markdown]
# **Exercise 2.** Does it matter *which* half of the dimensions is kept? Turn the columns of
# `found.asked[first]` and of its index round with `replace`, so that the last come first, and call
# `truncated` again. What is R@1 with the last `half` of the dimensions? Guess before you measure.

# %% tags=["exercise"]
answer = None  # yours: R@1, a number from 0 to 1
check(answer, solutions.r_at_1_of_last(found.asked[first], half), within=0.0005)

# %% tags=["solution"] jupyter={"source_hidden": true}
mine = found.asked[first]
turned = replace(mine.index, embeddings=mine.index.embeddings[:, ::-1])
answer = truncated(replace(mine, index=turned, embeddings=mine.embeddings[:, ::-1]), half).metrics["R@1"].mean
check(answer, solutions.r_at_1_of_last(mine, half), within=0.0005)
