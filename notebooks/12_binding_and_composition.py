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
# # Binding and composition: does a query need to be one query?
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/12_binding_and_composition.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/12_binding_and_composition.ipynb)
#
# **Question.** *"A bag of the size of A and the origin of B"* names two products, and each of them has a
# size and an origin. Does a model take the size from A, or from whichever product it happened to read it
# on? And is a query that names both at once worth more than two queries, one for each?
#
# Measured on **coral-mini** and MERIT-mini, a drawn catalogue; the paper's model ([arXiv
# 2506.03144](https://arxiv.org/abs/2506.03144)) may do otherwise: set MODEL to "Bia/CORAL", BEFORE to
# what it was trained from, and DATA to "WeiChow/merit".
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
BEFORE = "mini-base"  # what it was before it was trained for retrieval
DATA = "mini"  # or "WeiChow/merit", a folder with its files, a table of your own
QUERIES = 300
SUBSETS = 120  # of these, queries whose every subset of conditions is asked
PRODUCTS = 3000  # to search among: all right answers and others

# %%
import numpy as np
import pandas as pd
from IPython.display import display

import coral_lab as cl
from coral_lab.replication.cells import read_results, results_file
from coral_lab.study import binding, composition, interaction, solutions, splits
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import differences

# %% [markdown]
# ## 1. A toy that cannot bind
#
# A reader adds up all that it reads: each value is a direction, and a query is the sum of what stands on
# its references. A is an *M* from *Hanoi*, B an *L* from *Penang*; the query wants the size of A and the
# origin of B, so the right answer is an *M* from *Penang*.
#
# **Prediction.** How many of the four bags that there could be have the highest score by the sum?

# %%
guess_tied = None  # yours: 1, 2, 3 or 4

# %%
A, B = np.array([1, 0, 1, 0]), np.array([0, 1, 0, 1])  # M, L, Hanoi, Penang
bags = {"M Hanoi": [1, 0, 1, 0], "M Penang": [1, 0, 0, 1], "L Hanoi": [0, 1, 1, 0], "L Penang": [0, 1, 0, 1]}
asked = {"sum": A + B, "bound": A * [1, 1, 0, 0] + B * [0, 0, 1, 1]}
toy = pd.DataFrame({how: {bag: query @ own for bag, own in bags.items()} for how, query in asked.items()})
toy

# %%
guessed(guess_tied, int((toy["sum"] == toy["sum"].max()).sum()))

# %% [markdown]
# The sum knows that the four values were spoken of, and not of whom. Of its answers that have the wrong
# size *all* have B's. A reader that misreads would have any size: that is how the two can be told apart.
#
# ## 2. Whose value has a wrong hit?
#
# Of every first hit that fails one condition and no other: does the value that it has instead stand on
# *another* reference of the query, or on *nobody*'s? By *chance* another's would be taken this often, if
# the hit were any product that meets and fails the same conditions.
#
# **Prediction.** Of a hundred such hits, how many have another reference's value?

# %%
guess_another = None  # yours: a number from 0 to 100

# %%
shop = cl.dataset(DATA, on_error="skip", sample=500).having("queries", "attributes")
queries = composition.several(shop.queries)[:QUERIES]
pool, quiet = shop.smaller_pool(queries, PRODUCTS), cl.Settings(progress=False)
names = list(dict.fromkeys((BEFORE, MODEL)))
indexes = {name: cl.index(cl.load(name), pool, settings=quiet) for name in names}
results = {name: index.evaluate(queries) for name, index in indexes.items()}
print(f"{len(queries)} queries of two conditions or more, over {len(pool):,} products")

# %%
rows = {name: binding.whose_value(result) for name, result in results.items()}
for name in names:
    print(f"We observe, for {name}, {binding.in_words(rows[name])}.\n")

# %%
wrong = rows[MODEL].query("failed == 1 and fails == 1")
guessed(guess_another, 100 * float((wrong["whose"] == "another").mean()), within=10)

# %% [markdown]
# One of them to look at, the query and its first hit:

# %%
for row in wrong[wrong["whose"] == "another"].head(1).to_dict("records"):
    print(f"wanted is the {row['attribute']} of the reference at place {row['place'] + 1}")
    display(next(query for query in queries if query.id == row["query"]), shop.product(row["first"]))

# %% [markdown]
# A few hundred queries leave few hits for each attribute. All 2,000 test queries were asked of the
# shipped checkpoints (`coral-lab experiment binding`): how far the share lies above chance, by attribute.

# %%
shipped = read_results(results_file("binding-queries")).assign(failed=1, fails=1)
own = binding.taken(shipped[shipped["arm"] == "mini"], "attribute").sort_values("beyond", ascending=False)
beyond = own.assign(attribute=own["value"] + " (" + own["hits"].astype(str) + " hits)").set_index("attribute")
shown = beyond[["beyond", "beyond low", "beyond high"]].set_axis(["difference", "low", "high"], axis=1)
differences(shown, "coral-mini: another reference's value", "share less chance")

# %%
told = own[own["p (Holm)"] < 0.05]["value"]
print(f"We observe, for mini: {', '.join(told) or 'no attribute'} can be told apart from chance,")
print(f"{', '.join(sorted({*own['value']} - {*told})) or 'no other'} cannot.")

# %% [markdown]
# ## 3. Change what the others say
#
# What a wrong hit has is no proof: sizes are few. So intervene. The *other* references are exchanged for
# products that say the *same* value of what is asked, something *else*, or *nothing* of it. All else
# stays, and so does what is right. A model that binds does not care.
#
# First the toy: B is from Penang whatever else it says, and says M, L or nothing of the size. How often
# has the sum's first hit a wrong size, where those of the same score come in any order?

# %%
others = {"same": [1, 0, 0, 1], "nothing": [0, 0, 0, 1], "else": [0, 1, 0, 1]}
scores = pd.DataFrame({says: {bag: (A + b) @ own for bag, own in bags.items()} for says, b in others.items()})
ties = scores.eq(scores.max())
pd.concat([scores, (ties[2:].sum() / ties.sum()).rename("the size is wrong").to_frame().T])

# %% [markdown]
# **Prediction.** Is the model's error higher where the others say something else than where they say the
# same? For which attributes?

# %%
guess_other = None  # yours: higher, lower or neither

# %%
found = {name: binding.binding(index, queries, shop.traits) for name, index in indexes.items()}
effects = pd.concat({name: binding.effects(own.rows) for name, own in found.items()}).droplevel(1)
effects = effects[effects["contrast"] == "else − same"]
for name, row in effects.iterrows():
    ends = f"[{row['difference low']:+.3f}, {row['difference high']:+.3f}]"
    print(f"We observe, for {name}: {row['difference']:+.3f} {ends}, p (Holm) {row['p (Holm)']:.2g}")

# %%
gap, p = effects.loc[MODEL, ["difference", "p (Holm)"]]
side = "neither" if p >= 0.05 else "higher" if gap > 0 else "lower"
guessed(guess_other, side, of=("higher", "lower", "neither"))

# %%
each = binding.effects(found[MODEL].rows, "attribute")
each = each[each["contrast"] == "else − same"].sort_values("difference", ascending=False).set_index("value")
shown = each[["difference", "difference low", "difference high"]].set_axis(
    ["difference", "low", "high"], axis=1
)
differences(shown, f"{MODEL}: what other references do", "error if they say something else, less if the same")

# %%
told = each.index[each["p (Holm)"] < 0.05]
print(f"We observe, for {MODEL}: the two can be told apart for {', '.join(told) or 'no attribute'}.")

# %% [markdown]
# ## 4. One query, or one for each condition?
#
# The same queries interleaved, as the model was trained, and in pieces: each condition asked alone, then
# the mean of the embeddings, the product of the scores, the fusion of the rankings (rrf), or the sum less
# the class asked alone. A reader that hears *size* and not *whose* is helped by pieces: there is but one
# size to take. One that binds is not, and in pieces nothing is said of how the conditions go together.
#
# **Prediction.** Is R@1 by the mean of the pieces higher or lower than that of the whole query?

# %%
guess_pieces = None  # yours: higher, lower or neither

# %%
ways = {name: composition.composed(index, queries) for name, index in indexes.items()}
tables = {name: composition.compare_ways(own) for name, own in ways.items()}
table = pd.concat({name: own[own["conditions"] == "all"].set_index("way") for name, own in tables.items()})
table.index = [": ".join(names) for names in table.index]
table[["R@1", "low", "high", "difference", "difference low", "difference high", "p (Holm)"]].round(3)

# %%
shown = table[["difference", "difference low", "difference high"]].set_axis(
    ["difference", "low", "high"], axis=1
)
differences(shown.dropna(), "In pieces, against the whole query", "difference in R@1")

# %%
for name, own in ways.items():
    print(f"We observe, for {name}, {composition.in_words(own)}.")
gap, p = table.loc[f"{MODEL}: mean", ["difference", "p (Holm)"]]
side = "neither" if p >= 0.05 else "higher" if gap > 0 else "lower"
guessed(guess_pieces, side, of=("higher", "lower", "neither"))

# %% [markdown]
# A gap above 0 says that a model uses what interleaving tells it; below 0 it does better without.
# `coral-lab experiment composition` measures 900 queries of two, three and four conditions, `coral-lab
# evaluate --diagnose` says both numbers of any checkpoint, and the query bench has the format *one by
# one*.
#
# ## 5. Does a condition get in another's way?
#
# All subsets of a query's conditions, asked of the same pool: is a condition met less often when another
# one is asked beside it? By hand: a query of two conditions has four, the class alone among them.

# %%
query = max(queries, key=lambda query: len(query.conditions))
for name, edited in interaction.subsets(query):
    print(
        f"{name:8s}", query.class_name, *(condition.attribute for condition in edited.conditions), sep=" · "
    )

# %%
subsets = interaction.ask_subsets(indexes[MODEL], queries[:SUBSETS], shop.traits)
asking = interaction.by_asking(subsets)
by_attribute = asking.drop(index="all").sort_values("difference")
differences(
    by_attribute, f"{MODEL}: a condition beside another one", "share met, less when it is asked alone"
)

# %%
told = by_attribute[by_attribute["p (Holm)"] < 0.05]
alone, beside = asking.loc["all", ["alone", "together"]]
print(f"We observe, for {MODEL}: alone a condition is met by {alone:.1%} of first hits, beside one other by")
print(f"{beside:.1%}. The two can be told apart for {', '.join(told.index) or 'no attribute'}.")

# %% [markdown]
# Fewer products meet two conditions than one, and others come near. So compare queries that have as many
# right answers and as many near misses (*matched*). On 300 queries (`coral-lab experiment interaction`):

# %%
kept = read_results(results_file("interaction")).set_index("arm").loc["mini"]
ends, more = ["difference", "low", "high"], {}
for step in ("1 to 2", "2 to 3", "3 to 4"):
    more[f"{step}, as they are"] = [kept[f"{step} {end}"] for end in ends]
    more[f"{step}, matched"] = [kept[f"{step} matched {end}"] for end in ends]
more = pd.DataFrame(more, index=ends).T
differences(more, "coral-mini: one condition more", "share of right first hits")

# %%
for name, row in more.iterrows():
    room = "has room for 0" if row["low"] <= 0 <= row["high"] else "leaves out 0"
    print(f"We observe, {name}: {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] {room}.")

# %% [markdown]
# ## 6. Which combinations are new to a model?
#
# To ask whether a model *composes*, hold pairs out of its training: it sees both halves, never together.
# Two kinds: a class and a value (a *backpack* that is *red*), or two values (*red* and from *Hanoi*).
#
# By hand: eight attributes are 28 pairs of values. With each pair held out by chance with probability
# *s*, a product stays with probability (1 − *s*)²⁸.
#
# **Prediction.** Two in a hundred pairs of two values that queries ask for are held out. How many in a
# hundred products must leave training with them?

# %%
guess_leaves = None  # yours: a number from 0 to 100

# %%
split = splits.compositional_split(shop, "two values", share=0.02)
leaves = 100 * (1 - len(split.train.products) / len(shop.products))
print(
    f"We observe: {len(split.held_out)} pairs are held out, {len(split.test.queries)} queries ask for them;"
)
print(f"by hand {100 * (1 - 0.98**28):.0f} of a hundred products leave, counted {leaves:.1f}.")
guessed(guess_leaves, leaves, within=5)

# %% [markdown]
# Only pairs that some query asks for are held out, and values are not equally common, so that the two
# numbers differ. Counted anew in what training would see: no product, query or reference has both halves,
# and each half is there. `cl.train(model, split.train, …)` trains on it, and `split.test` has the queries
# to measure it by.

# %%
counted = splits.counts(split)
print(f"both halves: {int(counted.filter(like=' both').to_numpy().sum())} times in what training sees")
counted.head()

# %% [markdown]
# ## Summary
#
# - That a model finds the right answer to most queries does not say that it binds: look at whose value
#   its wrong answers have, and at what happens when the others change.
# - A query in pieces cannot confuse its references. Where it does better than the query as a whole, the
#   whole is read, in part at least, as a sum.
# - More conditions have fewer right answers: compare what is as hard before you say that one more is
#   harder.
#
# ## Exercises
#
# **1.** The whole query and its pieces are wrong about different queries. Of how many queries does the
# mean of the pieces find a right first hit where the whole query does not? (`ways[MODEL]` has a Result
# for each way, and a Result has `per_query`.)

# %% tags=["exercise"]
answer = None  # yours: a whole number
check(answer, solutions.found_only_by(ways[MODEL]["mean"], ways[MODEL]["interleaved"]))

# %% tags=["solution"] jupyter={"source_hidden": true}
mean, whole = (ways[MODEL][way].per_query["R@1"].to_numpy() for way in ("mean", "interleaved"))
answer = int(((mean == 1) & (whole == 0)).sum())
check(answer, solutions.found_only_by(ways[MODEL]["mean"], ways[MODEL]["interleaved"]))

# %% [markdown]
# **2.** Hold out as large a share of the pairs of a class and a value. Which share of the products leaves
# training, from 0 to 1? Predict first whether it is more than for two values: how many such pairs has a
# product?

# %% tags=["exercise"]
answer = None  # yours: a number from 0 to 1
check(answer, solutions.leaves_training(shop, "class and value", share=0.02), within=0.001)

# %% tags=["solution"] jupyter={"source_hidden": true}
other = splits.compositional_split(shop, "class and value", share=0.02)
answer = 1 - len(other.train.products) / len(shop.products)
check(answer, solutions.leaves_training(shop, "class and value", share=0.02), within=0.001)
