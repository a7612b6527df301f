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
# # Your own products: from a table to a judged test set
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/10_your_own_products.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/10_your_own_products.ipynb)
#
# **Question.** A model has good figures on somebody else's products. How good is it on mine, and how would I
# know?
#
# Here *mine* are 62 photographs of things (`data/photos`, in the public domain or CC0): tools, balls,
# instruments, with titles in eight languages. They come as a shop's export, a CSV. The models are
# **coral-mini** in two stages of its training. It has seen drawn products only and knows nothing of
# photographs: expect poor figures, and look at the way. MODELS and DATA take your own, `Bia/CORAL` among
# them.
#
# About 1 minute on two cores · some practice

# %% tags=["install"]
# In the workbench's own environment this does nothing. On Colab or Kaggle it installs the package:
# by its name, or put the path of a wheel of your own in its place.
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("coral_lab") is None:
    get_ipython().run_line_magic("pip", "install --quiet coral-lab[all]")

# %% tags=["parameters"]
DATA = "photos"  # or a CSV, parquet or Excel file, a DataFrame, a folder of pictures, …
MODELS = ["mini", "mini-base"]  # or "Bia/CORAL", a folder, a hub id
QUERIES = 80
JUDGED = 20  # of these, queries that are judged
OUT = "../build/own-products"

# %%
from pathlib import Path

import numpy as np
import pandas as pd

import coral_lab as cl
from coral_lab import sources, study
from coral_lab.metrics import detectable_difference, holm, paired_difference
from coral_lab.study import geometry, solutions
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import agreements
from coral_lab.widgets import JudgingBench, NeighbourhoodMap, QueryBench

# %% [markdown]
# ## 1. A table is a dataset
#
# Which column is what is found by names and contents, and shown. Where the guess is wrong, say
# `cl.dataset(DATA, columns={"title": "Name", "picture": None})`.

# %%
shop = cl.dataset(DATA, on_error="skip")
shop

# %% [markdown]
# ## 2. Queries for it
#
# Nobody has asked anything yet. From the attributes we sample queries as MERIT's authors do
# ([arXiv 2506.03144](https://arxiv.org/abs/2506.03144)): a product that is wanted, two to four of its
# attributes, and for each another product that has the same value. A query is kept if it has an answer, and
# not too many; what was refused is counted.

# %%
sampled = sources.sample_queries(shop, QUERIES)
sampled

# %%
sampled.dataset.queries[0]

# %% [markdown]
# **Prediction.** coral-mini has never seen a photograph. In how many of a hundred queries would a random
# order of the products have a right answer first? And by R@10, is the first of MODELS, trained to retrieve,
# higher than the second, the base; is it lower; or can the two not be told apart (p below 0.05 is what
# tells)?

# %%
guess_random = None  # yours: a number from 0 to 100
guess_stages = None  # yours: higher, lower or neither

# %%
models = [cl.load(name) for name in MODELS]
results = [cl.evaluate(model, sampled.dataset.queries, shop.products) for model in models]
figures = pd.DataFrame({result.model: {k: str(v) for k, v in result.metrics.items()} for result in results})
figures

# %%
chance = np.array([len(query.positives) for query in sampled.dataset.queries]) / len(shop.products)
print(f"We observe: a random order has R@1 {chance.mean():.3f} on average.")
guessed(guess_random, round(100 * chance.mean()), within=2)

# %% [markdown]
# Is a model above it? Two thousand random orders say how far chance alone goes; two tests, so Holm's
# correction.

# %%
draws = (np.random.default_rng(0).random((2000, len(chance))) < chance).mean(axis=1) - chance.mean()
away = np.array([result.metrics["R@1"].mean for result in results]) - chance.mean()
p = holm((1 + (np.abs(draws) >= np.abs(away)[:, None]).sum(axis=1)) / (1 + len(draws)))
for result, own, value in zip(results, away, p, strict=True):
    can = "can" if value < 0.05 else "cannot"
    print(f"We observe: R@1 of {result.model} is {own:+.3f} from a random order's,", end=" ")
    print(f"p (Holm) = {value:.3f}: the two {can} be told apart.")

# %%
first, second = (result.per_query["R@10"].to_numpy() for result in results[:2])
gap = paired_difference(first, second)
found = "neither" if gap.p >= 0.05 else "higher" if gap.mean > 0 else "lower"
print(f"We observe: R@10 of {results[0].model} less that of {results[1].model} is {gap.mean:+.3f}", end=" ")
print(f"[{gap.low:+.3f}, {gap.high:+.3f}], p = {gap.p:.3f}.")
guessed(guess_stages, found, of=("higher", "lower", "neither"))

# %% [markdown]
# ## 3. What attributes do not say
#
# The table says "brown", and has no word for a better or a worse brown. So people judge. On the query bench
# every hit can be marked: **1** right, **2** partly, **3** wrong, by key or by mouse, with a word why. Each
# mark is in the session's file at once; a killed kernel loses none.

# %%
Path(OUT).mkdir(parents=True, exist_ok=True)
session = sources.Session.open(f"{OUT}/bench.json", shop, judge="me")
index = cl.index(models[0], shop.products)
QueryBench(index, sampled.dataset.queries[0], session=session)

# %% [markdown]
# To compare models, judge **blind**: the first ten hits of all of them, shuffled, without names or ranks.

# %%
pools = study.pools(results)[:JUDGED]
blind = sources.Session.open(f"{OUT}/blind.json", shop, judge="the table")
JudgingBench(pools, blind)

# %% [markdown]
# A notebook that runs by itself has nobody to judge. Here the table plays the judge: all that was asked for
# is right, the right class with something missing is partly right. **Judge yourself instead: skip the next
# cell.**

# %%
for pool in pools:
    for product in pool.products:
        met = [condition.met_by(product) for condition in pool.query.conditions]
        is_class = product.class_name == pool.query.class_name
        grade = "right" if is_class and all(met) else "partly" if is_class and any(met) else "wrong"
        blind.mark(pool.query, product, grade)
blind

# %% [markdown]
# ## 4. A test set, and a number with an interval

# %%
test = blind.test_set()
judged = [cl.evaluate(model, test.queries, test.products) for model in models]
print(judged[0])

# %% [markdown]
# nDCG@10 is worked out by hand for one query: what its first ten hits were graded, against the order of all
# that was judged in which no grade stands behind a lower one.

# %%
place = judged[0].per_query["nDCG@10"].argmax()  # a query of which some hits were right
discounts = 1 / np.log2(np.arange(2, 12))
grades = np.maximum(judged[0].grades[place, :10], 0)  # what nobody judged counts as wrong
ideal = np.zeros(10, int)
known = np.sort(list(test.queries[place].relevance.values()))[::-1][:10]
ideal[: len(known)] = known
by_hand = ((2.0**grades - 1) * discounts).sum() / ((2.0**ideal - 1) * discounts).sum()
print(f"grades of the first ten {grades.tolist()}, in the ideal order {ideal.tolist()}")
print(f"nDCG@10 by hand {by_hand:.4f}, in the result {judged[0].per_query['nDCG@10'][place]:.4f}")

# %% [markdown]
# **Prediction.** So few judged queries: by nDCG@10, can the two models be told apart?

# %%
guess_apart = None  # yours: True or False

# %%
first, second = (result.per_query["nDCG@10"].to_numpy() for result in judged[:2])
gap = paired_difference(first, second)
least = detectable_difference(float(np.std(first - second, ddof=1)), gap.n)
print(f"We observe: nDCG@10 of {judged[0].model} less that of {judged[1].model} is {gap.mean:+.3f}")
print(f"[{gap.low:+.3f}, {gap.high:+.3f}] over {gap.n} judged queries, p = {gap.p:.3f}: they", end=" ")
print(f"{'can' if gap.p < 0.05 else 'cannot'} be told apart; so many queries show a difference of")
print(f"{least:.2f} in four of five samples.")
guessed(guess_apart, bool(gap.p < 0.05))

# %% [markdown]
# Written for others' tools, and read again:

# %%
sources.write_beir(test, f"{OUT}/beir")
again = cl.dataset(f"{OUT}/beir")
same = [a.relevance == b.relevance for a, b in zip(again.queries, test.queries, strict=True)]
print(f"We observe: {sum(same)} of {len(test.queries)} queries have the grades that were written.")

# %% [markdown]
# ## 5. A map to send
#
# Clusters of the embeddings are named by the words of titles and attributes that set them apart (c-TF-IDF,
# [arXiv 2203.05794](https://arxiv.org/abs/2203.05794)). Do neighbours in the space share what the table says
# of them? Beside each share stands what chance gives: the same labels dealt out anew. **Prediction.** Which
# of class, language, color, material and condition do neighbours share more often than by chance?

# %%
guess_shared = None  # yours: a set of words, {"color"} or so, or set()

# %%
near = geometry.neighbours(index.embeddings, 5)
known = {"class": [product.class_name for product in shop.products]}
known |= {"language": [product.language for product in shop.products]}
known |= {
    key: [p.attributes.get(key, ("",)) for p in shop.products] for key in ("color", "material", "condition")
}
table = geometry.label_agreement(near, known)
table["p (Holm)"] = holm(table["p"].to_numpy(float))
agreements(table, "Do neighbours share a label?")

# %%
shared = set(table["label"][table["p (Holm)"] < 0.05])
print("We observe: more often than by chance neighbours share", ", ".join(sorted(shared)) or "none of these")
print(f"(p (Holm) from {table['p (Holm)'].min():.3f} to {table['p (Holm)'].max():.3f}).")
guessed(guess_shared, shared)

# %% [markdown]
# On the map colours are the clusters'. How far apart two of them lie says nothing.

# %%
chart = NeighbourhoodMap(
    shop.products,
    index.embeddings,
    geometry.umap(index.embeddings),
    clusters=study.clusters(shop.products, index.embeddings, 6),
    title=f"{len(shop.products)} photographs by {models[0].name}",
)
chart.colour.value = "cluster"
chart.save(f"{OUT}/map.html")  # needs neither kernel nor network
print(f"{Path(f'{OUT}/map.html').stat().st_size / 1e6:.1f} MB")
chart.static()

# %% [markdown]
# ## Summary
#
# - A table becomes products by itself; attributes give queries; marks give grades; grades give nDCG@10 with
#   an interval, and judged@10 says how much of it is known.
# - Figures here say nothing about CORAL: the model never saw a photograph, and the table played the judge.
#
# **Exercise 1.** `blind.test_set()` takes products marked right for answers. How many queries have an answer
# if what is marked partly right counts too?

# %% tags=["exercise"]
answer = None  # yours: a number of queries
check(answer, solutions.partly_answered(blind))

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = len(blind.test_set("partly").queries)
check(answer, solutions.partly_answered(blind))

# %% [markdown]
# **Exercise 2.** A strict judge calls wrong whatever the table calls partly right, and agrees in all else.
# What is Cohen's kappa of the two, where 0 is what chance gives? Guess first; then open a session
# `sources.Session.open(f"{OUT}/strict.json", shop, judge="strict")`, mark in it, and ask
# `study.agreement(blind, strict)`. (And judge some yourself: `widgets.disagreements` shows on what two
# differ.)

# %% tags=["exercise"]
answer = None  # yours: a number from -1 to 1
check(answer, solutions.strict_kappa(blind), within=0.005)

# %% tags=["solution"] jupyter={"source_hidden": true}
strict = sources.Session.open(f"{OUT}/strict.json", shop, judge="strict")
for (query, product), own in blind.judgements.items():
    strict.mark(blind.queries[query], product, "wrong" if own.grade == "partly" else own.grade)
answer = study.agreement(blind, strict).mean
check(answer, solutions.strict_kappa(blind), within=0.005)
