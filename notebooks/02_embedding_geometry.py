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
PRODUCTS = 600
QUERIES = 300
K = 10  # neighbours
SEED = 0

# %%
from dataclasses import replace

import numpy as np
import pandas as pd

import coral_lab as cl
from coral_lab.results import Gallery
from coral_lab.retrieval import Index
from coral_lab.sources import shipped
from coral_lab.study import geometry
from coral_lab.study.comparison import judged
from coral_lab.study.depth import by_layer
from coral_lab.study.depth import figure as over_depth
from coral_lab.study.plots import matrix, scatter

# %%
shop = cl.dataset(DATA, on_error="skip", sample=500).having("queries")
products = shop.products[:PRODUCTS]
models = {name: cl.load(name) for name in MODELS}
first, last = MODELS[0], MODELS[-1]
print(f"{len(products):,} of {len(shop.products):,} products, seen by {', '.join(MODELS)}")

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
    print(f"{degrees}: mean cosine {geometry.anisotropy(toy):+.3f}, by hand {by_hand:+.3f};", end=" ")
    print(f"uniformity {geometry.uniformity(toy):+.3f}")

# %% [markdown]
# ## The same for products
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
# **Prediction.** Which of these does contrastive training push down, which up?

# %%
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
print(f"{len(queries)} queries with an answer among these products")

# %%
measures = {
    "anisotropy": geometry.anisotropy,
    "uniformity": geometry.uniformity,
    "intrinsic dimension": geometry.intrinsic_dimension,
    "hubness": lambda rows: geometry.hubness(rows, K),
}

# %%
table = pd.DataFrame(
    {name: {key: measure(own["both"]) for key, measure in measures.items()} for name, own in spaces.items()}
)
table.loc["alignment"] = {
    name: geometry.alignment(asked[name], own["both"][answers]) for name, own in spaces.items()
}
for one, other in (("picture", "title"), ("picture", "both"), ("title", "both")):
    table.loc[f"gap {one} – {other}"] = {
        name: geometry.modality_gap(own[one], own[other]) for name, own in spaces.items()
    }
table.round(3)

# %% [markdown]
# How much of that is the choice of products? The same measures on ten random halves of them, before and
# after:

# %%
for key, measure in measures.items():
    before, after = (geometry.over_halves(measure, spaces[name]["both"], seed=SEED) for name in (first, last))
    apart = before.max() < after.min() or after.max() < before.min()
    print(
        f"{key}: {before.min():.2f} to {before.max():.2f} in {first}, "
        f"{after.min():.2f} to {after.max():.2f} in {last}:",
        end=" ",
    )
    print("a change" if apart else "the ranges overlap, no change can be told")

# %%
falls = [key for key in table.index if table.loc[key, last] < table.loc[key, first]]
rises = [key for key in table.index if table.loc[key, last] > table.loc[key, first]]
print(
    f"We observe, from {first} to {last}:\n  lower: {', '.join(falls) or 'nothing'}"
    f"\n  higher: {', '.join(rises) or 'nothing'}"
)

# %% [markdown]
# The modality gap, drawn: 200 products, each as picture, as title and as both, along the two directions of
# most variance. Each model has directions of its own.

# %%
some = np.random.default_rng(SEED).choice(len(products), min(200, len(products)), replace=False)
drawn = {
    name: geometry.pca(np.concatenate([own[kind][some] for kind in kinds]))[0] for name, own in spaces.items()
}
scatter(
    {name: drawn[name] for name in dict.fromkeys((first, last))},
    np.repeat(list(kinds), len(some)),
    title="Pictures, titles, both",
)

# %% [markdown]
# ## Does the geometry tell which model retrieves better?
#
# R@1 of the same queries over the same products. **Prediction.** Which row of the table above follows it?

# %%
found = {
    name: judged(Index(models[name], products, own["both"]), queries, asked[name])
    for name, own in spaces.items()
}
ours = table.loc[["alignment", "uniformity", "hubness"]].T.round(3)
ours["R@1"] = [str(found[name].metrics["R@1"]) for name in MODELS]
ours.rename_axis(f"ours, {len(products):,} products")

# %% [markdown]
# The paper's R@1 for the same three steps, on a model two thousand times larger and 51,177 photographs: for
# orientation, not for comparison. That table has no measure of geometry to stand beside ours.

# %%
published = pd.read_csv(shipped("data/published.csv")).query("source.str.startswith('arXiv')")
published[(published["input"] == "Seq") & (published["training"] != "LoRA")][
    ["method", "size", "R@1", "source"]
]

# %% [markdown]
# ## Over depth: where does retrieval come about?
#
# An embedding is the last layer's state of the last token. Read the same token earlier: at layer 0 it is the
# token itself, the same for every item. **Prediction.** Does R@1 come gradually, or with the last layer? And
# do products spread out (anisotropy falls) before or after conditions are heard (what a condition adds to
# products that meet it, less to those that do not)?

# %%
few = queries[:100]
pool = shop.smaller_pool(few, PRODUCTS)
depth = {name: by_layer(models[name], few, pool) for name in (first, last)}
depth[last].round(3)

# %%
over_depth(depth[last])

# %%
halves = {name: int((table["R@1"] > table["R@1"].iloc[-1] / 2).idxmax()) for name, table in depth.items()}
print(
    "We observe: "
    + "; ".join(
        f"in {name}, half of the final R@1 is there at layer {layer} of {len(depth[name]) - 1}, "
        f"where anisotropy is {depth[name]['anisotropy'][layer]:.2f}"
        for name, layer in halves.items()
    )
    + "."
)

# %% [markdown]
# ## Hubs: products that are near everything
#
# How often is a product among the nearest of the others? On average K times. Here are those that are most
# often:

# %%
counts = geometry.occurrences(spaces[last]["both"], K)
hubs = np.argsort(-counts)[:6]
print(
    f"We observe: the greatest hub is among the {K} nearest of {counts.max()} products, "
    f"and {np.mean(counts == 0):.1%} of the products are among those of none."
)
Gallery([products[i] for i in hubs], [f"{counts[i]} times" for i in hubs], size=88)

# %% [markdown]
# ## What lies together?
#
# For each fact, how often a product's nearest neighbours share it, less how often any two products do.
# **Prediction.** What will training for retrieval gather: classes, brands, languages?

# %%
keys = pd.Series([key for product in products for key in product.attributes]).value_counts().index[:8]
facts = {"class": [p.class_name for p in products], "language": [p.language for p in products]}
facts |= {key: [", ".join(p.attributes.get(key, ())) for p in products] for key in keys}
near = {name: geometry.neighbours(own["both"], K) for name, own in spaces.items()}

# %%
chance = pd.Series({fact: geometry.shared_by_chance(values) for fact, values in facts.items()})
agree = pd.DataFrame(index=list(facts))
for name in MODELS:
    agree[name] = [geometry.shared(near[name], values).mean() for values in facts.values()]
beyond = agree.sub(chance, axis=0).rename_axis(index="neighbours share")
matrix(beyond, "Shared with neighbours, beyond chance", "share", middle=0.0)

# %%
gained = (agree[last] - agree[first]).sort_values()
strongest = beyond[last].drop(["class", "language"]).idxmax()
print(
    f"We observe, from {first} to {last}: shared with neighbours {gained.index[-1]} {gained.iloc[-1]:+.2f} "
    f"(most), "
    f"{gained.index[0]} {gained.iloc[0]:+.2f} (least)."
)
print(
    f"Of the attributes, {last} gathers {strongest} most: {agree.loc[strongest, last]:.0%} of neighbours "
    f"share it, "
    f"{chance[strongest]:.0%} by chance."
)

# %% [markdown]
# ## A map
#
# UMAP draws neighbours near one another, PCA keeps the directions of most variance. Colour by what you like
# in `facts`. **Prediction.** What will the islands be? Hover to read a title (in a live notebook).

# %%
linear, variance = geometry.pca(spaces[last]["both"])
places = geometry.umap(spaces[last]["both"], SEED)
maps = {"UMAP": places, "PCA": linear}
scatter(maps, facts["class"], [p.title[:40] for p in products], f"{last}, by class")

# %%
scatter(maps, facts["language"], title=f"{last}, by language")

# %%
scatter(maps, facts[strongest], title=f"{last}, by {strongest}")

# %% [markdown]
# ## What the map gets wrong
#
# **Prediction.** Of a product's ten nearest neighbours in the space, how many are still among its ten
# nearest on the map?
#
# Two errors are possible: true neighbours *torn* apart, and strangers put together. *Trustworthiness* looks
# at the second: 1 if no point has a false neighbour on the map.

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

# %% [markdown]
# The product whose neighbourhood UMAP tears most, and its true neighbours. Read maps as sketches; ask the
# space.

# %%
worst = int(lost["UMAP"].sum(1).argmax())
captions = [
    f"neighbour {n}" + (", torn away" if gone else "") for n, gone in enumerate(lost["UMAP"][worst], 1)
]
Gallery([products[i] for i in (worst, *near[last][worst])], ["the product", *captions], size=80)

# %% [markdown]
# ## From checkpoint to checkpoint
#
# Which neighbours stay? The share of a product's K nearest that two checkpoints have in common.

# %%
common = pd.DataFrame({a: {b: geometry.overlap(near[a], near[b]).mean() for b in MODELS} for a in MODELS})
matrix(common, "Neighbours in common", "share")

# %%
kept = geometry.overlap(near[first], near[last])
moved = int(kept.argmin())
print(
    f"We observe: {kept.mean():.0%} of the neighbours in {first} are still neighbours in {last}; "
    f"by chance {K / len(products):.0%}."
)
print(f"Below: the product that kept fewest ({kept[moved]:.0%}), its neighbours in {first}, then in {last}.")
before, after = ([products[j] for j in near[name][moved][:5]] for name in (first, last))
Gallery(
    [products[moved], *before, *after], ["the product", *[first] * len(before), *[last] * len(after)], size=80
)

# %% [markdown]
# Two maps drawn together, so that a product stays where it can: what moves has new neighbours.

# %%
aligned = geometry.aligned_umaps([spaces[name]["both"] for name in (first, last)], SEED)
scatter(
    {f"{first}, before": aligned[0], f"{last}, after": aligned[1]},
    facts["class"],
    title="Aligned maps, by class",
)

# %%
moves = np.linalg.norm(aligned[1] - aligned[0], axis=1)
far = pd.Series(moves).groupby(facts["class"]).median().sort_values()
print(
    f"We observe: products of class {far.index[-1]} move furthest on these maps, those of class "
    f"{far.index[0]} least."
)

# %% [markdown]
# ## Summary
#
# - One number never tells a space: look at alignment and uniformity together, and at what neighbours share.
# - A map in two dimensions loses neighbours and invents others. Count both before you believe an island.
#
# **Exercise.** Draw the map of `spaces[last]["picture"]` and of `spaces[last]["title"]`. In which of the
# two do neighbours share the brand, in which the material? Predict first, then measure with
# `geometry.shared`.
