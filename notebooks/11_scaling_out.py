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
# # Scaling out: from three thousand products to a billion
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/11_scaling_out.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/11_scaling_out.ipynb)
#
# **Question.** Four lines load a model, encode a catalogue, search and measure it. Which of them stop
# working when the catalogue is a thousand times as large, what takes their place, and what does it cost?
#
# Measured on **coral-mini** and MERIT-mini, a drawn catalogue, and on made-up vectors, on the machine that
# ran this. What it says of a 3B on GPUs is arithmetic on assumptions, which are yours to edit.
#
# About 3 minutes on two cores · advanced

# %% tags=["install"]
# In the workbench's own environment this does nothing. On Colab or Kaggle it installs the package:
# by its name, or put the path of a wheel of your own in its place.
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("coral_lab") is None:
    get_ipython().run_line_magic("pip", "install --quiet coral-lab[all,cluster]")

# %% tags=["parameters"]
MODEL = "mini"  # or "Bia/CORAL", or a folder
DATA = "mini"  # or "WeiChow/merit", a folder with its files, a table of your own
SIZES = [300, 900, 1800]  # products that are encoded, others each time
VECTORS = 100_000  # made-up ones, that are searched; an index is for so many or more
DIM = 256  # theirs
MAPPED = 5_000  # of them, the others are placed
CATALOGUES = [135_000, 1_000_000, 10_000_000, 1_000_000_000]  # MERIT, and what the cost model is asked

# %%
import time
from tempfile import mkdtemp

import numpy as np
import pandas as pd

import coral_lab as cl
from coral_lab.errors import ItemError
from coral_lab.replication.cells import read_results, results_file
from coral_lab.store import Engine, approximate, encode_sharded
from coral_lab.store.blocks import Marks
from coral_lab.store.tables import PRODUCTS, Record, Table
from coral_lab.study import scaling, solutions
from coral_lab.study.exercises import check, guessed
from coral_lab.study.large_maps import density, in_batches, large_map
from coral_lab.study.plots import growth

# %% [markdown]
# ## 1. A toy: twelve products in three blocks
#
# A run of a week is stopped sooner or later. So a catalogue is encoded in *blocks*: each is written when it
# is done, and marked; one commit at the end makes all of them rows of the store. Here the last product of
# the third block has a picture that is not there.
#
# **Prediction.** After the run has failed, how many of the twelve products are in the store?

# %%
guess_rows = None  # yours: a number from 0 to 12

# %%
shop, model = cl.dataset(DATA, on_error="skip"), cl.load(MODEL)
place, quiet = mkdtemp(), cl.Settings(progress=False)
few = [*shop.products[:11], cl.Product("lost", "a picture that is not there", image="nowhere.png")]
try:
    encode_sharded(lambda: model, few, place, Engine(block=4), quiet)
except ItemError as error:
    print(error)
store = cl.open_store(place, model)
rows, done = len(store), len(Marks(store.table).read())
print(f"{rows} products in the store, {done} of 3 blocks are done")

# %%
guessed(guess_rows, rows)

# %% [markdown]
# Nothing is in the store before all is: nobody searches a half. Mended, the same call does the third block
# alone.

# %%
few[-1] = shop.products[11]
print(encode_sharded(lambda: model, few, place, Engine(block=4), quiet))

# %% [markdown]
# With many GPUs each takes blocks: `Engine("ray", workers=8)`, or `torchrun` on the command line (*Guide*,
# *Many workers*). Ray's embeddings of 3,000 products are those of one process to the bit, also with a worker
# and then everything killed in the middle (`benchmarks/sharded.py`).
#
# ## 2. Encoding
#
# **Prediction.** This machine encodes some hundred products, and some thousand. Would ten million take it
# hours, days, or months?

# %%
guess_time = None  # yours: "hours", "days" or "months"

# %%
unkept = cl.Settings(progress=False, store="")
cl.encode(model, shop.products[-SIZES[0] :], settings=unkept)  # the first call is slower
seconds, starts = [], np.cumsum([0, *SIZES])
for start, size in zip(starts[:-1], SIZES, strict=True):
    began = time.perf_counter()
    cl.index(model, shop.products[start : start + size], settings=unkept)
    seconds.append(time.perf_counter() - began)
growth(pd.DataFrame({MODEL: seconds}, pd.Index(SIZES, name="products")), "Encoding, this machine", "seconds")

# %%
rate = SIZES[-1] / seconds[-1]
days = 10_000_000 / rate / 86400
power = scaling.grown(seconds, SIZES)
print(f"We observe {rate:.0f} products a second; seconds grow by the power {power:.2f} of the products")
print(f"(1: in step). Ten million would take {days:.1f} days.")
found = "hours" if days < 2 else "days" if days < 60 else "months"
guessed(guess_time, found, of=("hours", "days", "months"))

# %% [markdown]
# ## 3. Searching
#
# Exact search reads every vector: its time grows with their number. An *index* (IVF-PQ) sorts vectors into
# cells, looks into the nearest few of them (`probes`), at codes of a byte for every four dimensions, and
# scores the best candidates exactly (`refine` times as many as are wanted). What it misses is measured.
#
# Made-up vectors in clusters, as products are in kinds:

# %%
random = np.random.default_rng(0)
vectors = scaling.clustered(random, scaling.centres(random, VECTORS // 100, DIM), VECTORS + 100)
table = Table(mkdtemp(), "made_up", DIM, {"model": "made up"})
table.commit([Record(f"{i}", "product", f"{i}") for i in range(VECTORS)], vectors[:VECTORS])
queries = vectors[VECTORS:]
began = time.perf_counter()
exact = approximate.exact(table, queries, 10, PRODUCTS)
print(f"all {len(queries)} queries exactly, reading once: {time.perf_counter() - began:.1f} s")

# %% [markdown]
# **Prediction.** Of the exact ten nearest, what share does an index find that looks into 4 of its cells? (It
# has as many as the root of the number of vectors.)

# %%
guess_recall = None  # yours: a number from 0 to 1

# %%
began = time.perf_counter()
approximate.build(table)
print(f"built in {time.perf_counter() - began:.0f} s")
curve = []
for probes in (1, 2, 4, 8, 16, 32):
    began = time.perf_counter()
    found = approximate.ranked(table, queries, 10, PRODUCTS, approximate.Effort(probes, 10))
    each = (time.perf_counter() - began) / len(queries)
    names = [{name for _, name in own} for own in found]
    shares = [len(own & {*right}) / 10 for own, right in zip(names, exact, strict=True)]
    curve.append({"probes": probes, "recall@10": np.mean(shares), "ms a search": 1000 * each})
curve = pd.DataFrame(curve).set_index("probes")
curve.round(3)

# %%
guessed(guess_recall, float(curve.loc[4, "recall@10"]), within=0.05)

# %% [markdown]
# A user does not choose probes but a recall: `tune` (and `store.make_index(recall=0.95)`) looks for the
# least effort that finds so much.

# %%
tuned = approximate.tune(table, queries, 0.95, "ivf-pq")
print("We observe:", tuned)

# %% [markdown]
# The same with up to ten million vectors, measured once (`python benchmarks/ann.py 10000000`):

# %%
shipped = read_results(results_file("search-at-scale"))
shipped.drop(columns=["commit", "torch"], errors="ignore").round(3)

# %%
own = shipped[shipped["kind"] == "ivf-pq"].set_index("products").rename_axis("vectors")
growth(own[["exact, ms", "approximate, ms"]], "A search of 256 dimensions, from disk", "ms")

# %%
powers = {name: scaling.grown(own[name], own.index) for name in ("exact, ms", "approximate, ms", "built, s")}
print("We observe powers of", ", ".join(f"{power:.2f} ({name})" for name, power in powers.items()))

# %% [markdown]
# ## 4. Measuring
#
# `store.evaluate` ranks the whole store for every query and reads no more of it than was found. Exactly it is
# what the index in memory gives; through an approximate index it says beside its metrics what that finds,
# for a right answer that the index misses looks like a mistake of the model.

# %%
queries = shop.having("queries").queries[:200]
pool = shop.smaller_pool(queries, 1000)
place = mkdtemp()
stored = cl.open_store(place, model)
stored.add(pool, quiet)
whole, memory = stored.evaluate(queries), cl.index(model, pool, settings=quiet).evaluate(queries)
print(whole)
print("We observe: the same as by the index in memory:", whole.metrics == memory.metrics)

# %% [markdown]
# ## 5. A map
#
# UMAP of a million takes long, and a million points are a blot. So a sample is mapped, every other product
# is placed between its nearest mapped ones, and the figure counts: darker by powers of ten. In a live kernel
# `DensityMap(large_map(store.in_batches), store.products)` counts anew where one zooms, draws products one by
# one where at most 2,000 are in sight, and fetches those that one clicks.
#
# **Prediction.** Of the ten nearest of a *placed* product, does the map keep as many as of a mapped one's,
# more, or fewer?

# %%
guess_kept = None  # yours: "as many", "more" or "fewer"

# %%
ids = np.arange(VECTORS).astype(str)
found = large_map(in_batches(ids, vectors[:VECTORS]), sample=MAPPED)
print(found)
density(found, f"{VECTORS:,} made-up products, {MAPPED:,} of them mapped")

# %%
mapped, placed = found.kept_mapped, found.kept_placed
apart = mapped.low > placed.high or placed.low > mapped.high
side = "as many" if not apart else "more" if placed.mean > mapped.mean else "fewer"
print(f"We observe: of the mapped {mapped}, of the placed {placed}, by chance {found.chance:.4f}.")
guessed(guess_kept, side, of=("as many", "more", "fewer"))

# %% [markdown]
# Islands and gaps of such a map are those of its sample: a kind that has no product in the sample has no
# island, and stands between others.
#
# ## 6. What does it cost?
#
# Arithmetic, on assumptions that are yours to edit: operations of a product by the 3B (counted for
# pictures of 336 × 336 pixels), a GPU's stated peak and the share of it that encoding reaches, bytes of a
# row beside its vector, bytes of its code in an index, and how fast a disk is read.
#
# **Prediction.** A vector of CORAL has 2,048 numbers of four bytes. How many GB are those of ten million
# products?

# %%
guess_memory = None  # yours: GB

# %%
assumed = scaling.Assumptions(dim=2048, flop=1.793e12, peak=989e12, share=0.4, gpus=8)
cost = scaling.costs(CATALOGUES, assumed).set_index("products")
print(f"{assumed.rate:.0f} products a second on one GPU")
cost.round(2)

# %%
guessed(guess_memory, float(scaling.costs([10_000_000], assumed)["vectors, GB"][0]), within=10)

# %%
growth(cost[["GPU-hours", "vectors, GB", "memory, index, GB"]], "A 3B, by size of the catalogue")

# %%
small, large = cost.iloc[0], cost.iloc[-1]
minutes, days, read = 60 * small["hours"], large["hours"] / 24, small["exact search, s"]
print(f"We observe: {cost.index[0]:,} products take {assumed.gpus} GPUs {minutes:.1f} minutes, and an exact")
print(f"search {read:.1f} s from disk. {cost.index[-1]:,} take {days:.1f} days; an index's")
print(f"codes alone are {large['memory, index, GB']:.0f} GB of memory.")

# %% [markdown]
# MERIT has 135,000 products, and its test queries search 51,177 of them ([arXiv
# 2506.03144](https://arxiv.org/abs/2506.03144)): at that size nothing is approximate, and the paper's figures
# are those of exact search.
#
# ## Summary
#
# - Encoding grows in step with the catalogue, and so does what it costs; many workers share it, in blocks
#   that are never done twice.
# - Exact search grows in step too. An index does not have to look at everything: wish for a recall, and read
#   what it measured.
# - What an index misses looks like a mistake of the model: say its recall beside R@k.
# - A map of a million is a map of a sample with all others placed on it; look at what the placing keeps
#   before you believe in an island.
#
# ## Exercises
#
# **1.** At 672 × 672 pixels a product takes 6.574 TFLOP. How many of these GPUs encode a billion products
# in a week?

# %% tags=["exercise"]
answer = None  # yours: a whole number
check(answer, solutions.gpus_for(1_000_000_000, 7, scaling.Assumptions(flop=6.574e12)))

# %% tags=["solution"] jupyter={"source_hidden": true}
hours = scaling.costs([1_000_000_000], scaling.Assumptions(flop=6.574e12))["GPU-hours"][0]
answer = int(np.ceil(hours / (7 * 24)))
check(answer, solutions.gpus_for(1_000_000_000, 7, scaling.Assumptions(flop=6.574e12)))

# %% [markdown]
# **2.** How many products' codes does an index hold in 64 GB of memory, at 256 bytes each and 8 for the row's
# number?

# %% tags=["exercise"]
answer = None  # yours: a whole number, to half a million
check(answer, solutions.fit_in(64, assumed), within=500_000)

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = 64e9 / (256 + 8)
check(answer, solutions.fit_in(64, assumed), within=500_000)
