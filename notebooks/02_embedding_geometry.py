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
# # Embedding geometry: what does the space look like, and what does a map of it hide?
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/02_embedding_geometry.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/02_embedding_geometry.ipynb)
#
# **Question.** Retrieval training moves every product. Does the space become rounder, do pictures and
# titles come together, do a few products end up near everything? And can you trust the pretty map?
#
# Everything here is measured on **coral-mini** and MERIT-mini, and says nothing about the paper's model
# ([arXiv 2506.03144](https://arxiv.org/abs/2506.03144)). MODELS and DATA take any other.
#
# About 3 minutes on two cores · some practice

# %% tags=["install"]
# In the workbench's own environment this does nothing. On Colab or Kaggle it installs the package:
# by its name, or put the path of a wheel of your own in its place.
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("coral_lab") is None:
    get_ipython().run_line_magic("pip", "install --quiet coral-lab[all]")

# %% tags=["parameters"]
MODELS = ["mini-base", "mini-contrastive", "mini"]  # in the order of training; or "Bia/CORAL", or folders
DATA = "mini"  # or "WeiChow/merit", a folder with its files, a table of your own
SAME = [
    "brand",
    "shape",
    "material",
    "origin",
]  # what all variants of a listing share, in a table of your own
PRODUCTS = 600
QUERIES = 300
K = 10  # neighbours
SEED = 0

# %%
from dataclasses import replace

import numpy as np
import pandas as pd

import coral_lab as cl
from coral_lab.metrics import holm, paired_difference
from coral_lab.results import Gallery
from coral_lab.retrieval import Index
from coral_lab.sources import shipped
from coral_lab.study import geometry, judged, solutions
from coral_lab.study.depth import by_layer
from coral_lab.study.depth import figure as over_depth
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import agreements, differences, matrix, scatter
from coral_lab.training.held_out import listings

# %%
shop = cl.dataset(DATA, on_error="skip", sample=500).having("queries")
models = {name: cl.load(name) for name in MODELS}
first, last = MODELS[0], MODELS[-1]
print(f"{len(shop.products):,} products, seen by {', '.join(MODELS)}")

# %% [markdown]
# ## A toy first: four points on a circle
#
# Four embeddings at 0°, 90°, 180° and 270°, and four at 0°, 10°, 20° and 30°. **Prediction.** What is the
# mean cosine of two of them, in either case? (cos 10° = 0.985, cos 20° = 0.940, cos 30° = 0.866; there are
# six pairs.)

# %%
for degrees in ([0, 90, 180, 270], [0, 10, 20, 30]):
    angles = np.deg2rad(degrees)
    toy = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    by_hand = np.mean([np.cos(angles[i] - angles[j]) for i in range(4) for j in range(i)])
    print(
        f"We observe, {degrees}: mean cosine {geometry.anisotropy(toy):+.3f}, by hand {by_hand:+.3f};",
        end=" ",
    )
    print(f"uniformity {geometry.uniformity(toy):+.3f}")

# %% [markdown]
# ## One variant a listing
#
# A shop lists one thing in several colours or sizes. MERIT's files do not name listings: hard negatives and
# equal titles tell some, and in MERIT-mini equal facts tell the others. **Prediction.** Of ten products, how
# many have another variant of themselves for their *nearest* neighbour?

# %%
guess_siblings = None  # yours: a number from 0 to 10

# %%
of = pd.DataFrame({"listing": listings(shop)})
of["facts"] = [
    str((p.class_name, *(p.attributes[key] for key in SAME))) if p.attributes.keys() >= set(SAME) else p.id
    for p in shop.products
]
one_each = of.drop_duplicates("facts").drop_duplicates("listing")
chosen = {"siblings in": of[:PRODUCTS], "siblings out": one_each[:PRODUCTS]}
print(f"{len(one_each):,} listings of {len(of):,} products")

# %%
with_and_without = pd.DataFrame()
for name, own in chosen.items():
    some = [shop.product(id) for id in own.index]
    rows = cl.encode(models[last], some)
    near = geometry.neighbours(rows, K)
    with_and_without[name] = {
        "nearest is a sibling": (own.values[near[:, 0]] == own.values).any(1).mean(),
        "intrinsic dimension": geometry.intrinsic_dimension(rows),
        "hubness": geometry.hubness(rows, K),
        "neighbours of its class": geometry.shared(near, [p.class_name for p in some]).mean(),
    }
with_and_without.round(2)

# %%
print("We observe, once each listing has one variant:", end=" ")
print("; ".join(f"{name} {a:.2f} → {b:.2f}" for name, a, b in with_and_without.itertuples()) + ".")
guessed(guess_siblings, round(10 * with_and_without.loc["nearest is a sibling", "siblings in"], 1), within=1)

# %% [markdown]
# Whatever changes here told of the catalogue, not of the space. From here on every listing has one variant.
#
# ## Before and after training
#
# Every product three times: as it is, its picture without the title, its title without the picture.
#
# - **anisotropy**: mean cosine of two random products; 0 if all directions are used, 1 if none but one
# - **uniformity**: lower is rounder; **alignment**: squared distance of a query and its answer, lower is
#   better ([Wang and Isola](https://arxiv.org/abs/2005.10242))
# - **intrinsic dimension**: how many directions a neighbourhood has (TwoNN); **hubness**: above 1, some
#   products are among the nearest of very many others
# - **modality gap**: how far the mean picture lies from the mean title ([Liang et
#   al.](https://arxiv.org/abs/2203.02053))
#
# **Prediction.** Which of these does training push down?

# %%
guess_falls = None  # yours: a set of names from the list, such as {"hubness", "alignment"}

# %%
products = [shop.product(id) for id in chosen["siblings out"].index]
kinds = {
    "both": products,
    "picture": [replace(product, title="") for product in products],
    "title": [replace(product, image=None) for product in products],
}
spaces = {
    name: {kind: cl.encode(model, some) for kind, some in kinds.items()} for name, model in models.items()
}

# %%
rows = {product.id: row for row, product in enumerate(products)}
queries = [query for query in shop.queries if rows.keys() & set(query.positives)][:QUERIES]
answers = [next(rows[id] for id in query.positives if id in rows) for query in queries]
asked = {name: cl.encode(model, queries) for name, model in models.items()}
print(f"{len(queries)} queries with an answer among {len(products)} products")

# %% [markdown]
# How much of a change is the choice of products? Each measure is taken of 100 random halves, the *same*
# halves before and after. One rule for all: with p below 0.05 after Holm's correction, before and after can
# be told apart.

# %%
measures = {
    "anisotropy": geometry.anisotropy,
    "uniformity": geometry.uniformity,
    "intrinsic dimension": geometry.intrinsic_dimension,
    "hubness": lambda rows: geometry.hubness(rows, K),
    "modality gap": lambda rows: geometry.modality_gap(*np.hsplit(rows, 2)),
    "alignment": lambda rows: geometry.alignment(*np.hsplit(rows, 2)),
}
measured = {name: dict.fromkeys(measures, own["both"]) for name, own in spaces.items()}
for name, own in spaces.items():  # what is measured of pairs stands in one row
    measured[name]["modality gap"] = np.hstack([own["picture"], own["title"]])
    measured[name]["alignment"] = np.hstack([asked[name], own["both"][answers]])

# %%
table = pd.DataFrame(
    {name: {key: measure(own[key]) for key, measure in measures.items()} for name, own in measured.items()}
)
changes = {
    key: geometry.change_over_halves(measure, measured[first][key], measured[last][key], seed=SEED)
    for key, measure in measures.items()
}
table["change"] = {key: f"{c.mean:+.3f} [{c.low:+.3f}, {c.high:+.3f}]" for key, c in changes.items()}
table["p (Holm)"] = holm(np.array([change.p for change in changes.values()]))
table.round(3)

# %%
told = table.index[table["p (Holm)"] < 0.05]
falls, rises = ({key for key in told if sign * changes[key].mean > 0} for sign in (-1, 1))
print(f"We observe, from {first} to {last}: lower {', '.join(sorted(falls)) or 'nothing'};", end=" ")
print(f"higher {', '.join(sorted(rises)) or 'nothing'};", end=" ")
print(f"cannot be told apart: {', '.join(sorted(set(table.index) - set(told))) or 'nothing'}.")
guessed(guess_falls, falls)

# %% [markdown]
# ## Does the geometry tell which model retrieves better?
#
# R@1 of the same queries over the same products. **Prediction.** Does alignment, where lower is better, fall
# as R@1 rises?

# %%
found = {
    name: judged(Index(models[name], products, own["both"]), queries, asked[name])
    for name, own in spaces.items()
}
ours = table.loc[["alignment", "uniformity", "hubness"], MODELS].T.astype(float).round(3)
ours["R@1"] = [str(found[name].metrics["R@1"]) for name in MODELS]
ours.rename_axis(f"ours, {len(products):,} products")

# %%
right = [found[name].per_query["R@1"].to_numpy() for name in (last, first)]
rise, told = paired_difference(*right), "can" if table["p (Holm)"]["alignment"] < 0.05 else "cannot"
print(
    f"We observe, from {first} to {last}: R@1 {rise.mean:+.3f} [{rise.low:+.3f}, {rise.high:+.3f}];", end=" "
)
print(f"alignment {table['change']['alignment']}, which {told} be told apart.")

# %% [markdown]
# Answers need not come nearer if all others go farther. The paper's R@1 for the same three steps, on a model
# two thousand times larger and 51,177 photographs: for orientation, not for comparison. That table has no
# measure of geometry to stand beside ours.

# %%
published = pd.read_csv(shipped("data/published.csv")).query("source.str.startswith('arXiv')")
published[(published["input"] == "Seq") & (published["training"] != "LoRA")][
    ["method", "size", "R@1", "source"]
]

# %% [markdown]
# ## Over depth: where does retrieval come about?
#
# An embedding is the last layer's state of the last token. Read the same token earlier: at layer 0 it is the
# token itself, the same for every item. **Prediction.** At which layer is half of the final R@1 there? And do
# products spread out (anisotropy falls) before conditions are heard (gain: what a condition adds to products
# that meet it, less to those that do not)?

# %%
few = queries[:100]
depth = {name: by_layer(models[name], few, products) for name in dict.fromkeys((first, last))}
over_depth(depth[last])

# %%
for name, own in depth.items():
    half, heard = (int((own[key] >= own[key].iloc[-1] / 2).idxmax()) for key in ("R@1", "gain"))
    spread = int((own["anisotropy"] <= (1 + own["anisotropy"].iloc[-1]) / 2).idxmax())
    print(f"We observe, {name} of {len(own) - 1} layers: half of R@1 is there at layer {half},", end=" ")
    print(f"half of the spread at layer {spread}, half of the gain at layer {heard}.")

# %% [markdown]
# ## Hubs: products that are near everything
#
# How often is a product among the nearest of the others? On average K times. **Prediction.** Is the greatest
# hub greater than if neighbours were dealt out at random? Below: it, and five that are found often.

# %%
counts = geometry.occurrences(spaces[last]["both"], K)
others = len(products) - 1
dealt = np.random.default_rng(SEED).binomial(others, K / others, (1000, len(products))).max(1)
low, high = np.quantile(dealt, [0.025, 0.975]).astype(int)
print(f"We observe: the greatest hub is among the {K} nearest of {counts.max()} products;", end=" ")
print(f"dealt out, of {low} to {high}. {np.mean(counts == 0):.1%} of the products are among those of none.")
hubs = np.argsort(-counts, kind="stable")[:6]
Gallery([products[i] for i in hubs], [f"{counts[i]} times" for i in hubs], size=88)

# %% [markdown]
# ## What lies together?
#
# For each fact, how often a product's nearest neighbours share it, and how often they would if facts were
# dealt out anew. **Prediction.** What does training for retrieval gather *more* than before: classes, brands,
# languages?

# %%
guess_gathers = None  # yours: a set of facts, such as {"class", "brand", "language"}

# %%
keys = pd.Series([key for product in products for key in product.attributes]).value_counts().index[:8]
facts = {"class": [p.class_name for p in products], "language": [p.language for p in products]}
facts |= {key: [", ".join(p.attributes.get(key, ())) for p in products] for key in keys}
near = {name: geometry.neighbours(own["both"], K) for name, own in spaces.items()}
agreements(geometry.label_agreement(near[last], facts, seed=SEED), f"Neighbours in {last}")

# %%
gains = {}
for fact, values in facts.items():
    change = paired_difference(*(geometry.shared(near[name], values) for name in (last, first)))
    gains[fact] = {"difference": change.mean, "low": change.low, "high": change.high, "p": change.p}
gains = pd.DataFrame(gains).T
gains["p (Holm)"] = holm(gains["p"].to_numpy())
differences(gains.sort_values("difference"), f"Shared with neighbours: {last} less {first}", "share")

# %%
told = gains[gains["p (Holm)"] < 0.05]["difference"]
gathers, scatters = set(told.index[told > 0]), set(told.index[told < 0])
print(
    f"We observe, from {first} to {last}: more neighbours share {', '.join(sorted(gathers)) or 'nothing'};",
    end=" ",
)
print(f"fewer share {', '.join(sorted(scatters)) or 'nothing'}; the rest cannot be told apart.")
guessed(guess_gathers, gathers)

# %% [markdown]
# ## A map
#
# UMAP draws neighbours near one another, PCA keeps the directions of most variance. Six classes have a
# colour; hover to read a title (in a live notebook). **Prediction.** What are the islands, classes or
# languages?

# %%
guess_islands = None  # yours: class, language or neither

# %%
linear, variance = geometry.pca(spaces[last]["both"])
maps = {"UMAP": geometry.umap(spaces[last]["both"], SEED), "PCA": linear}
scatter(maps, facts["class"], [p.title[:40] for p in products], f"{last}, by class", coloured=6)

# %%
scatter(maps, facts["language"], title=f"{last}, by language")

# %%
beside = geometry.map_neighbours(maps["UMAP"], K)
beyond = {
    fact: geometry.shared(beside, facts[fact]) - geometry.shared_by_chance(facts[fact])
    for fact in ("class", "language")
}
which = paired_difference(beyond["class"], beyond["language"])
print(f"We observe, {K} nearest on the map, shared beyond chance:", end=" ")
print(", ".join(f"{fact} {own.mean():.2f}" for fact, own in beyond.items()) + f", p {which.p:.4f}.")
islands = "neither" if which.p >= 0.05 else "class" if which.mean > 0 else "language"
guessed(guess_islands, islands, of=("class", "language", "neither"))

# %% [markdown]
# ## What the map gets wrong
#
# **Prediction.** Of a product's ten nearest neighbours in the space, how many are still among its ten
# nearest on the map?
#
# Two errors are possible: true neighbours *torn* apart, and strangers put together. *Trustworthiness* looks
# at the second: 1 if no point has a false neighbour on the map.

# %%
guess_kept = None  # yours: a number from 0 to 10, for UMAP

# %%
lost = {name: geometry.torn(spaces[last]["both"], own, K) for name, own in maps.items()}
for name, own in maps.items():
    trust, alone = geometry.trustworthiness(spaces[last]["both"], own, K), lost[name].all(1).mean()
    print(
        f"We observe, {name}: {lost[name].mean():.0%} of neighbours torn away, trustworthiness {trust:.2f};",
        end=" ",
    )
    print(f"{alone:.0%} of the products have none of their {K} neighbours beside them.")
print(f"(PCA's two directions hold {variance.sum():.0%} of the variance)")
guessed(guess_kept, round(10 * (1 - lost["UMAP"].mean()), 1), within=1)

# %% [markdown]
# One of the products whose neighbourhood UMAP tears, and its true neighbours. Read maps as sketches: an
# island's size, and how far it lies from another, mean nothing. Ask the space.

# %%
one = int(lost["UMAP"].sum(1).argmax())
captions = [f"neighbour {n}" + (", torn away" if gone else "") for n, gone in enumerate(lost["UMAP"][one], 1)]
Gallery([products[i] for i in (one, *near[last][one])], ["the product", *captions], size=80)

# %% [markdown]
# ## From checkpoint to checkpoint
#
# Which neighbours stay? The share of a product's K nearest that two checkpoints have in common.

# %%
common = pd.DataFrame({a: {b: geometry.overlap(near[a], near[b]).mean() for b in MODELS} for a in MODELS})
matrix(common, "Neighbours in common", "share")

# %%
kept = geometry.overlap(near[first], near[last])
print(f"We observe: {kept.mean():.0%} of the neighbours in {first} are still neighbours in {last};", end=" ")
print(f"by chance {K / others:.0%}.")

# %% [markdown]
# ## Summary
#
# - One number never tells a space: look at alignment and uniformity together, and at what neighbours share.
# - Variants of one listing are each other's neighbours: keep one, or you measure the catalogue.
# - A map in two dimensions loses neighbours and invents others. Count both before you believe an island.
#
# **Exercise 1.** Which facts do neighbours share at least 0.1 more often by titles alone
# (`spaces[last]["title"]`) than by pictures alone? Predict first, then measure with `geometry.shared`.

# %% tags=["exercise"]
answer = None  # yours: a set of facts, such as {"class", "brand"}
check(answer, solutions.shared_by_titles(spaces[last]["picture"], spaces[last]["title"], facts, K))

# %% tags=["solution"] jupyter={"source_hidden": true}
alone = {kind: geometry.neighbours(spaces[last][kind], K) for kind in ("picture", "title")}
answer = set()
for fact, values in facts.items():
    by_picture, by_title = (geometry.shared(alone[kind], values).mean() for kind in ("picture", "title"))
    answer |= {fact} if by_title >= by_picture + 0.1 else set()
check(answer, solutions.shared_by_titles(spaces[last]["picture"], spaces[last]["title"], facts, K))

# %% [markdown]
# **Exercise 2.** Anisotropy needs no pairs. With n rows of length 1 whose sum is s, all ordered pairs have
# cosines that add up to |s|² − n. What is the mean cosine of all pairs in `spaces[first]["both"]`?

# %% tags=["exercise"]
answer = None  # yours: a number, to three decimals
check(answer, solutions.mean_cosine(spaces[first]["both"]), within=0.001)

# %% tags=["solution"] jupyter={"source_hidden": true}
rows = spaces[first]["both"].astype(float)
n, length = len(rows), np.linalg.norm(rows.sum(0))
answer = float((length**2 - n) / (n * (n - 1)))
check(answer, solutions.mean_cosine(spaces[first]["both"]), within=0.001)
