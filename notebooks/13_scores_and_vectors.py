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
# # Scores and vectors: what a score says, and how small a vector may be
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/13_scores_and_vectors.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/13_scores_and_vectors.ipynb)
#
# **Question.** A ranking keeps the order of scores and throws their values away. Does a value say
# something: whether a product meets the query at all, whether the first hit can be trusted? And the
# vectors that scores are made of: how many dimensions do they need, how many bits, and how sharp a
# picture?
#
# Measured on **coral-mini** and MERIT-mini, a drawn catalogue; the paper's model ([arXiv
# 2506.03144](https://arxiv.org/abs/2506.03144)) may do otherwise: set MODEL to "Bia/CORAL" and DATA to
# "WeiChow/merit".
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
QUERIES = 1000
PRODUCTS = 3000  # to search among: all right answers and others
STURDY = 120  # queries that are asked with worse pictures and in other words
DOSES = ["blur 2%", "size 0.25"]  # what is done to pictures then

# %%
from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import HTML
from PIL import Image

import coral_lab as cl
from coral_lab.evaluation import asked
from coral_lab.metrics import holm, paired_difference
from coral_lab.replication.cells import read_results, results_file
from coral_lab.results import flow, product_img, tile
from coral_lab.study import cheaper, hubs, scores, solutions, sturdiness
from coral_lab.study.comparison import compare_edits
from coral_lab.study.edits import AS_ASKED
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import differences, matrix

# %% [markdown]
# ## 1. A toy: two products meet a query, three do not
#
# How well do scores tell them apart, whatever the number of either? Take one of each kind: how often has
# the one that meets the query the higher score? That is the *AUROC*: 1 if always, 0.5 if scores say
# nothing.
#
# **Prediction.** Those that meet it have 0.9 and 0.6, the others 0.7, 0.3 and 0.2. Count pairs: what is
# it?

# %%
guess_pairs = None  # yours: a number from 0 to 1

# %%
met, unmet = np.array([0.9, 0.6]), np.array([0.7, 0.3, 0.2])
pd.DataFrame(met[:, None] > unmet, index=met, columns=unmet)

# %%
guessed(guess_pairs, scores.auroc(met, unmet), within=0.01)

# %% [markdown]
# ## 2. Met against unmet
#
# The same for each query of a model, over the whole pool: products that meet all of it against *all
# others*, against *others of the class*, and against near misses that fail *only* the size, *only* the
# brand, …

# %%
shop = cl.dataset(DATA, on_error="skip", sample=500).having("queries", "attributes")
queries = shop.queries[:QUERIES]
index = cl.index(cl.load(MODEL), shop.smaller_pool(queries, PRODUCTS), settings=cl.Settings(progress=False))
whole = asked(index, queries)
rows = scores.met_against_unmet(whole, shop.traits)
print(f"{len(queries):,} queries over {len(index.products):,} products")

# %%
table = scores.separation(rows[rows["met"] == "all"]).set_index("against").sort_values("AUROC")
table[["queries", "AUROC", "low", "high"]].round(3)

# %% [markdown]
# **Prediction.** Most products are of another class, and easily told. Among near misses, which conditions
# are harder to tell than the other ones of the same query?

# %%
near = rows[rows["against"].str.startswith("only ")].dropna(subset="AUROC")
wide = near.pivot(index="query", columns="against", values="AUROC")
tests = {}
for name in wide:
    pairs = pd.DataFrame({"own": wide[name], "others": wide.drop(columns=name).mean(axis=1)}).dropna()
    if len(pairs) > 1:
        found = paired_difference(pairs["own"].to_numpy(), pairs["others"].to_numpy())
        tests[name] = {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
tests = pd.DataFrame(tests).T.sort_values("difference")
tests["p (Holm)"] = holm(tests["p"].to_numpy())
differences(tests, f"{MODEL}: near misses", "AUROC, less that of the query's other near misses")

# %%
told = tests[tests["p (Holm)"] < 0.05]
harder, easier = told.index[told["difference"] < 0], told.index[told["difference"] > 0]
print(f"We observe: harder than the query's others are {', '.join(harder) or 'none'};")
print(f"easier are {', '.join(easier) or 'none'}; the rest cannot be told apart from them.")

# %% [markdown]
# ## 3. Does a score warn of a wrong first hit?
#
# Three signs: the *gap* from the first hit to the second, the *top* score itself, and the *spread* from
# the first to the tenth. Scores were trained to order products within a query; that they could be
# compared between queries nobody promised.
#
# A toy: five queries, the surest first, of which the third and the last are wrong. If one is answered,
# none of the answers is wrong; if three, one of three.

# %%
sign, wrong = np.array([0.5, 0.4, 0.3, 0.2, 0.1]), np.array([False, False, True, False, True])
scores.risk_coverage(sign, wrong).round(3)

# %% [markdown]
# **Prediction.** One query whose first hit is right and one whose is wrong: how likely has the right one
# the larger gap? And if only the half of the queries with the larger gaps is answered, how many in a
# hundred of these answers are wrong?

# %%
guess_gap = None  # yours: a number from 0 to 1
guess_half = None  # yours: a number from 0 to 100

# %%
hits = scores.signs(whole.ranked(10))
warnings = scores.predictors(hits)
print(f"Of all first hits {hits['wrong'].mean():.1%} are wrong.")
warnings.round(3)

# %%
guessed(guess_gap, float(warnings.loc["gap", "AUROC"]), within=0.05)

# %%
wrong = hits["wrong"].to_numpy()
curves = {name: scores.risk_coverage(hits[name].to_numpy(), wrong) for name in scores.SIGNS}
curves["if all wrong ones came last"] = scores.risk_coverage((~wrong).astype(float), wrong)
scores.coverage_curves(curves, f"{MODEL}: what is wrong of what is answered")

# %%
half = curves["gap"].iloc[len(wrong) // 2 - 1]
guessed(guess_half, 100 * float(half["risk"]), within=2)

# %%
for name, row in warnings.iterrows():
    print(f"We observe, {name}: AUROC {row['AUROC']:.3f} [{row['AUROC low']:.3f}, {row['AUROC high']:.3f}]")

# %% [markdown]
# The shipped checkpoints on all 2,000 test queries (`coral-lab experiment scores`): AUROC of the gap, the
# share of wrong first hits, the mean risk over all coverages (AURC), and the least that so many errors
# allow.

# %%
kept = read_results(results_file("scores")).set_index("arm")
kept[["gap AUROC", "gap risk", "gap AURC", "gap least AURC"]].round(3)

# %% [markdown]
# ## 4. Fewer dimensions, fewer bits
#
# An embedding is a row of numbers of 32 bits. Keep fewer dimensions, or divide each row by its largest
# number and round to few whole numbers: of 4 bits from −7 to 7, of one bit the signs alone. By hand, 4
# bits: divide by 0.9, times 7, round.

# %%
row = np.array([[0.9, -0.3, 0.1, 0.02]], np.float32)
coded = {f"bits: {bits}": cheaper.codes(row, bits)[0] for bits in cheaper.BITS}
pd.DataFrame(coded, index=row[0].round(2)).T

# %% [markdown]
# **Prediction.** With 8, 4 and 1 bit a dimension: of how few cannot R@1 be told apart from that of the
# whole embedding? (Half of the queries are asked; the others are a bank, which the next section needs.)

# %%
guess_bits = None  # yours: 8, 4 or 1; 32 if all can be told

# %%
own, bank = (replace(whole, queries=whole.queries[i::2], embeddings=whole.embeddings[i::2]) for i in (0, 1))
rows = {}
for name in cheaper.ways(index.model.dim):
    result, row = cheaper.way(own, bank, name)
    rows[name] = {"R@1": result.metrics["R@1"].mean, **row}
table = pd.DataFrame(rows).T.rename(columns=lambda name: name.removeprefix("R@1 change") or "difference")
tested = table.index != "as it is"
table.loc[tested, "p (Holm)"] = holm(table.loc[tested, " p"].to_numpy())
table.rename(columns=str.strip).drop(columns="p").round(3)

# %%
table = table.rename(columns=str.strip)
smaller = table[tested & ~table.index.isin([*hubs.WAYS])]
shown = smaller.set_axis([f"{name}, {row['bytes']:.0f} bytes" for name, row in smaller.iterrows()])
differences(shown, f"{MODEL}: R@1, against {table['bytes'].iloc[0]:.0f} bytes", "difference in R@1")

# %%
alike = smaller.index[smaller["p (Holm)"] >= 0.05]
print(f"We observe: {', '.join(alike) or 'none'} cannot be told apart from the whole embedding.")
few = [bits for bits in cheaper.BITS if any(name.startswith(f"{bits} bit") for name in alike)]
guessed(guess_bits, min(few, default=32))

# %% [markdown]
# The same of the shipped checkpoints (`coral-lab experiment vectors`: 1,000 queries, 1,000 in the bank).
# None was trained to be cut: its dimensions have no order, so that half of them are any half.

# %%
kept = read_results(results_file("vectors"))
kept[["model", "way"]] = kept["arm"].str.extract(r"^(mini(?:-base|-contrastive)?) (.*)$")
kept = kept[~kept["way"].isin([*hubs.WAYS])]
grid = kept.pivot(index="way", columns="model", values="R@1")
matrix(grid.loc[kept["way"].unique(), kept["model"].unique()], "Shipped checkpoints", "R@1")

# %% [markdown]
# ## 5. Hubs
#
# A *hub* is a product that is near to every query. In the toy the first product is: it is the first hit
# of three queries that want the second, the third, and the first. A bank of two other queries likes it
# too. CSLS takes from twice each score what the bank gives the product at best: 2 × 0.7 − 0.1 = 1.3 for
# the second product.

# %%
toy = np.array([[0.8, 0.7, 0.1], [0.8, 0.1, 0.7], [0.8, 0.2, 0.3]])
liked = np.array([[0.8, 0.1, 0.0], [0.8, 0.0, 0.1]])
print("first hits:", toy.argmax(1) + 1, "with CSLS:", hubs.csls(toy, liked, k=1).argmax(1) + 1)
hubs.csls(toy, liked, k=1).round(2)

# %% [markdown]
# **Prediction.** The model at hand, with QB-Norm and CSLS: are products found more alike (a lower
# *hubness*, the skewness of how often each is among ten hits), and does R@1 rise?

# %%
print(f"We observe: hubness {table['hubness'].iloc[0]:.2f} as it is.")
for name, row in table.loc[[*hubs.WAYS]].iterrows():
    ends = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
    side = "can" if row["p (Holm)"] < 0.05 else "cannot"
    print(f"{name}: {row['hubness']:.2f}; R@1 {row['difference']:+.3f} {ends}, {side} be told apart.")

# %% [markdown]
# ## 6. How rough may the input be?
#
# Pictures are blurred, by hundredths of their shorter side, or made smaller, to a share of it. A toy:
# black and white stripes two pixels wide. Made a quarter as large, each pixel holds a stripe of both:
# grey.

# %%
stripes = cl.Product("stripes", image=Image.fromarray(np.tile(np.uint8([0, 0, 255, 255]), (64, 16))))
left = {}
for name, how in sturdiness.CHANGES.items():
    pixels = np.asarray(how(stripes).picture)[:, :, 0].astype(int)
    middle = pixels.shape[1] // 4
    left[name] = np.ptp(pixels[:, middle:-middle]) / 255
pd.Series(left, name="contrast left").round(2).to_frame()

# %% [markdown]
# A reference as it is, and at each dose:

# %%
changes = {"as it is": lambda product: product, **sturdiness.CHANGES}
reference = queries[0].references[0]
HTML(flow(tile(product_img(how(reference), 84), [name], width=90) for name, how in changes.items()))

# %% [markdown]
# References changed, the whole catalogue changed, and the instruction said in five other ways, with a
# control that does not say which attribute is meant.
#
# **Prediction.** coral-mini looks at 84 × 84 pixels of a picture of 224 × 224. Which of these cost R@1 so
# much that it can be told from so few queries?

# %%
some = [query for query in queries if query.language == "en"][:STURDY]
pool = cl.index(index.model, shop.smaller_pool(some, PRODUCTS // 3), settings=index.settings)
chosen = {name: sturdiness.CHANGES[name] for name in DOSES}
tests = compare_edits(sturdiness.sturdiness(pool, some, chosen), "edit", AS_ASKED)
differences(tests, f"{MODEL}, {len(some)} queries: R@1, against the query as asked", "difference in R@1")

# %%
told = tests.index[tests["p (Holm)"] < 0.05]
print(f"We observe: {', '.join(told) or 'none'} can be told apart from the query as asked;")
print(f"{', '.join(sorted({*tests.index} - {*told})) or 'no other'} cannot.")

# %% [markdown]
# Every dose, on 300 queries over the whole pool (`coral-lab experiment sturdiness --limit 300`):

# %%
kept = read_results(results_file("sturdiness")).set_index("arm").filter(like="R@1 change")
kept = kept.set_axis(["difference", "low", "high", "p"], axis=1)
kept = kept.filter(regex="^mini (references|catalogue)", axis=0).rename(lambda arm: arm.removeprefix("mini "))
kept["p (Holm)"] = holm(kept["p"].to_numpy())
differences(kept, "coral-mini: R@1, against pictures as they are", "difference in R@1")

# %%
print("We observe, told apart from pictures as they are:", ", ".join(kept.index[kept["p (Holm)"] < 0.05]))

# %% [markdown]
# ## Summary
#
# - An order is all that R@k sees. AUROC within a query says how well scores tell what meets it, whatever
#   the number of products; near misses say where it is hard.
# - A sign that warns pays as far as its curve lies below a level line. Where the least possible curve is
#   far below, another sign might pay more.
# - Dimensions and bits are two ways to save the same bytes: compare them at the same bytes, on the same
#   queries.
# - What a dose does to a picture depends on how many pixels a model looks at, and on what it must see
#   there.
#
# ## Exercises
#
# **1.** Answer only the quarter of the queries with the largest gaps (`hits` has a row for each). How
# many of their first hits are wrong?

# %% tags=["exercise"]
answer = None  # yours: a whole number
check(answer, solutions.wrong_among_surest(hits, 0.25))

# %% tags=["solution"] jupyter={"source_hidden": true}
surest = hits.sort_values("gap", ascending=False).head(len(hits) // 4)
answer = int(surest["wrong"].sum())
check(answer, solutions.wrong_among_surest(hits, 0.25))

# %% [markdown]
# **2.** How many products of the pool are never among the first ten hits of any of the queries?
# (`whole.ranked(10).ranked` has rows of the pool.)

# %% tags=["exercise"]
answer = None  # yours: a whole number
check(answer, solutions.never_found(whole.ranked(10)))

# %% tags=["solution"] jupyter={"source_hidden": true}
ranked = whole.ranked(10).ranked
answer = len(index.products) - len(np.unique(ranked[ranked >= 0]))
check(answer, solutions.never_found(whole.ranked(10)))
