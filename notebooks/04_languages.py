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
# # Languages: does a model prefer its own?
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/04_languages.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/04_languages.ipynb)
#
# **Question.** MERIT's shops write in five languages ([arXiv
# 2506.03144](https://arxiv.org/abs/2506.03144)). Put every product on the shelf five times, with its title
# in each: is a query answered in its own language, is every language shown as often, and what would be
# lost if the language were taken out of the embeddings?
#
# MERIT-mini can title any product in any of its languages, so here nothing but the language changes. MERIT
# has one title a product: there `cl.evaluate(…).by("language")` compares queries that differ in more than
# that. Measured on **coral-mini**; for the paper's model set MODEL to "Bia/CORAL" and BEFORE to what it
# was trained from.
#
# About 2 minutes on two cores · advanced

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
DATA = "mini"  # one with parallel titles
QUERIES = 200
PRODUCTS = 1200  # each of them in every language; all right answers and others, 120 at least

# %%
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd

import coral_lab as cl
from coral_lab.metrics import detectable_difference, estimate, holm, paired_difference
from coral_lab.study import languages, solutions
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import differences

# %% [markdown]
# ## 1. A toy: to prefer one's own, or one for all
#
# Five products are five directions, and a title adds half a step towards its language, English or Thai.
# One query wants the first product and is asked in both. Three readers: the first looks towards the
# language it is asked in, the second towards English whoever asks, the third towards the *other* language.
# A right product in the language looked for scores 1.25, in the other 1; a wrong one 0.25 or 0.
#
# **Prediction.** For the reader that always looks towards English: which share of its first hits is in the
# language of the asker?

# %%
guess_own = None  # yours: a number from 0 to 1

# %%
what, english, thai = np.eye(5, 7), np.eye(7)[5] / 2, np.eye(7)[6] / 2
looks = {"its own": (english, thai), "English": (english, english), "the other": (thai, english)}
titles, first = np.float32([what + english, what + thai]), np.eye(1, 5, dtype=bool)
toys = {}
for name, towards in looks.items():
    asked = np.float32([what[:1] + one for one in towards])
    toys[name] = languages.Parallel(("en", "th"), titles, asked, first, np.zeros_like(first), ["bag"] * 5)
toy = pd.concat({name: languages.by_query(own).iloc[0] for name, own in toys.items()}, axis=1)
toy.round(3)

# %%
guessed(guess_own, toy.loc["own first", "English"])

# %% [markdown]
# So there are two questions. **Preference** (*own first*): half of the first hits are in the asker's
# language for a reader that is blind to it, and for one that likes English alike. **Exposure**: which share
# of the first ten places, early ones worth more, has each language? The first reader is fair by it, and
# prefers; the second does not prefer, and is not fair.
#
# ## 2. One product, five titles
#
# **Prediction.** How far are two titles of one product apart, as a share of the distance of two products
# of its class?

# %%
guess_apart = None  # yours: a number from 0 to 1

# %%
shop = cl.dataset(DATA).having("queries", "parallel titles")
queries = shop.queries[:QUERIES]
few = replace(shop, queries=queries, products=shop.smaller_pool(queries, PRODUCTS))
retitle, tongues = shop.traits.retitle, shop.traits.languages
print(f"{len(queries)} queries, {len(few.products):,} products in {len(tongues)} languages")
pd.DataFrame({"title": [retitle(few.products[0], tongue).title for tongue in tongues]}, tongues)

# %%
names, quiet = list(dict.fromkeys((BEFORE, MODEL))), cl.Settings(progress=False)
embedded = {name: languages.parallel(cl.load(name), few, quiet) for name in names}
own, apart = embedded[MODEL], {name: languages.titles_apart(one) for name, one in embedded.items()}
titles, others = apart[MODEL]
guessed(guess_apart, float(np.mean(titles) / np.nanmean(others)), within=0.05)

# %% [markdown]
# ## 3. Ask in one language, find in another
#
# The shelf in one language, the references' titles in the same or in another: all pairs, on the same
# queries.
#
# **Prediction.** Is R@1 in one language higher, lower or neither?

# %%
guess_across = None  # yours: higher, lower or neither

# %%
right = {}
for a, b in product(tongues, tongues):
    rows, shelf = own.queries[tongues.index(a)], own.products[tongues.index(b)]
    best = np.where(own.left_out, -np.inf, rows @ shelf.T).argmax(axis=1)
    right[a, b] = own.right[np.arange(len(best)), best].astype(float)
one, across = (np.mean([right[a, b] for a, b in right if (a == b) is same], 0) for same in (True, False))
gap = paired_difference(one, across)
print(f"We observe: R@1 {one.mean():.3f} in one language, {across.mean():.3f} across two,", end=" ")
print(f"difference {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], p {gap.p:.2g}.")
side = "neither" if gap.p >= 0.05 else "higher" if gap.mean > 0 else "lower"
guessed(guess_across, side, of=("higher", "lower", "neither"))

# %% [markdown]
# Where two cannot be told apart, say what could have been found: of a true difference of this size, eight
# of ten samples of so many queries would have had p < 0.05 (before any correction). Nothing is said of a
# smaller one.

# %%
power = detectable_difference(float((one - across).std(ddof=1)), len(one))
said = (
    f"would find a difference of {power:.3f}" if power > 0 else "do not differ, which says nothing of power"
)
print(f"We observe: {len(one)} queries {said}.")

# %% [markdown]
# ## 4. The whole shelf: every title of every product
#
# Now all titles stand on one shelf, and each query is asked five times, once in each language. Blind to
# language, a fifth of the first hits and of the first five is in the asker's own. One rule from here on: *p
# (Holm) < 0.05, and two things can be told apart*.
#
# **Prediction.** Of a hundred first hits, how many are in the asker's own language?

# %%
guess_preference = None  # yours: a number from 0 to 100

# %%
found = {name: languages.measured(one) for name, one in embedded.items()}
blind, tests = np.full(len(queries), 1 / len(tongues)), {}
for name, share in product(names, ("own first", "own top 5")):
    tests[f"{name}: {share}"] = vars(paired_difference(found[name][1][share].to_numpy(), blind))
tests = pd.DataFrame(tests).T.rename(columns={"mean": "difference"})
tests["p (Holm)"] = holm(tests["p"].to_numpy())
differences(tests, "Hits in the asker's own language", f"share, less 1 / {len(tongues)}")

# %%
told = tests.index[tests["p (Holm)"] < 0.05]
print(f"We observe: can be told apart from no preference: {', '.join(told) or 'none of these'}.")
guessed(guess_preference, 100 * found[MODEL][0]["own first"], within=2)

# %% [markdown]
# **Exposure.** The share of the first ten places that each language has. The languages with the smallest
# and the largest always differ, by chance alone: so first one test for all (each query's shares are dealt
# out to the languages anew), and then each language against an even share. No language is told apart more
# surely than all of them are: its p is at least that of the first test.
#
# **Prediction.** Does every language have as much?

# %%
fair = holm(np.array([found[name][0]["exposure p"] for name in names]))
for name, p in zip(names, fair, strict=True):
    verdict = "can be told apart" if p < 0.05 else "cannot be told apart"
    print(f"We observe, for {name}: exposure {verdict} from an even one (p (Holm) {p:.2g}).")

# %%
shown = {tongue: found[MODEL][1][f"exposure {tongue}"].to_numpy() for tongue in tongues}
shares = pd.DataFrame({tongue: vars(paired_difference(own, blind)) for tongue, own in shown.items()}).T
shares = shares.rename(columns={"mean": "difference"}).sort_values("difference", ascending=False)
shares["p (Holm)"] = np.maximum(holm(shares["p"].to_numpy()), fair[names.index(MODEL)])
differences(shares, f"{MODEL}: places in the first ten", f"share, less 1 / {len(tongues)}")

# %%
told = shares.index[shares["p (Holm)"] < 0.05]
print(f"We observe, for {MODEL}: {', '.join(told) or 'no language'} can be told apart from an even share.")

# %% [markdown]
# ## 5. Can the language be read off at all?
#
# A linear probe learns to tell a title's language from its embedding, and is asked about products that it
# has not seen. **Prediction.** Of a hundred titles, of how many can it tell the language? Chance is 20.

# %%
guess_read = None  # yours: a number from 0 to 100

# %%
reads = {"as it is": "language read", "less the product's mean": "language read within"}
row = found[MODEL][0]
for name, key in reads.items():
    print(f"We observe, {name}: {row[key]:.2f} [{row[f'{key} low']:.2f}, {row[f'{key} high']:.2f}]")
guessed(guess_read, 100 * row["language read"], within=5)

# %% [markdown]
# Products differ so much more than titles that they drown the language. Take from each title the mean of
# its product's five, and only what the titles do *not* have in common is left.
#
# ## 6. What if it is taken out?
#
# LEACE ([arXiv 2306.03819](https://arxiv.org/abs/2306.03819)) is the least change to all embeddings after
# which no linear probe tells the language. By hand: take it out of the first toy, and both titles of a
# product have the same embedding.

# %%
bare = languages.erased(toys["its own"])
cosines = {name: (one.products[0] * one.products[1]).sum(1)[0] for name, one in toys.items()}
norm = (toys["its own"].products[0, 0] ** 2).sum()
print(f"one product in English and Thai: cosine {cosines['its own'] / norm:.2f} as it is,", end=" ")
print(f"{(bare.products[0] * bare.products[1]).sum(1)[0]:.2f} without language")

# %% [markdown]
# A change to an embedding may cost something whatever it takes out. So beside it a control: the languages
# dealt out anew to each product's titles, and that taken out in the same way.
#
# **Prediction.** What becomes of R@1 without the language: higher, lower or neither?

# %%
guess_without = None  # yours: higher, lower or neither

# %%
without = {what: languages.measured(own, what) for what in languages.ERASED}
ends, changes = {"change": "difference", "change low": "low", "change high": "high", "change p": "p"}, {}
for what, measure in product(without, ("R@1", "own first")):
    changes[f"{measure}: {what}"] = {to: without[what][0][f"{measure} {key}"] for key, to in ends.items()}
changes = pd.DataFrame(changes).T
changes["p (Holm)"] = holm(changes["p"].to_numpy())
differences(changes, f"{MODEL}: less its language, or less other labels", "change")

# %%
for name, row in changes.iterrows():
    verdict = "can be told apart from 0" if row["p (Holm)"] < 0.05 else "cannot be told apart from 0"
    measure, what = name.split(": ")
    size = without[what][0][f"{measure} detectable"]
    said = f"would find {size:.3f}" if size > 0 else "do not differ, which says nothing of power"
    print(f"We observe, {name}: {row['difference']:+.3f} {verdict}; {len(queries)} queries {said}.")

# %%
gap, p = changes.loc["R@1: language", ["difference", "p (Holm)"]]
side = "neither" if p >= 0.05 else "higher" if gap > 0 else "lower"
guessed(guess_without, side, of=("higher", "lower", "neither"))

# %%
a, b = (without[what][1]["R@1"].to_numpy() for what in languages.ERASED)
gap = paired_difference(a, b)
verdict = "can be told apart" if gap.p < 0.05 else "cannot be told apart"
print(f"We observe: R@1 without language less R@1 without other labels {gap.mean:+.3f}", end=" ")
print(f"[{gap.low:+.3f}, {gap.high:+.3f}]; the two {verdict}.")

# %% [markdown]
# ## 7. What did training do to titles?
#
# Two models on the same products and queries: how far titles of a product lie apart as a share of products
# of its class, hits in the asker's language, and R@1.
#
# **Prediction.** Training for retrieval never says that two titles are of one product. Does it bring them
# nearer all the same?

# %%
ratios = {name: inside / between for name, (inside, between) in apart.items()}
measures = {"titles, as a share of products": {name: own[np.isfinite(own)] for name, own in ratios.items()}}
for measure in ("own first", "R@1"):
    measures[measure] = {name: found[name][1][measure].to_numpy() for name in names}
trained = {name: vars(paired_difference(own[MODEL], own[BEFORE])) for name, own in measures.items()}
trained = pd.DataFrame(trained).T.rename(columns={"mean": "difference"})
trained["p (Holm)"] = holm(trained["p"].to_numpy())
for name in names:
    trained[name] = [str(estimate(own[name])) for own in measures.values()]
trained[[*names, "difference", "low", "high", "p (Holm)"]]

# %%
told = trained.index[trained["p (Holm)"] < 0.05]
for name in trained.index:
    verdict = "can be told apart" if name in told else "cannot be told apart"
    print(
        f"We observe, {name}: {MODEL} less {BEFORE} {trained.loc[name, 'difference']:+.4f}; they {verdict}."
    )

# %% [markdown]
# The paper tests on languages that training held back (th, ms, id) and reports that performance drops. Its
# table of results has no breakdown by language, so there is no figure to stand beside these.
#
# ## Summary
#
# - Preference (is it my language?) and exposure (is it everybody's turn?) are two questions. A model can
#   fail either and pass the other.
# - What a probe can read need not be what retrieval uses. Take it out, beside a control, and look.
# - "Cannot be told apart" is half a sentence: the other half is which difference would have been found.
#
# ## Exercises
#
# **1.** For how many products is the nearest to its title in the first language another title of its own,
# of all titles of all products? (`own.products` is [language, product, dim], of length 1.)

# %% tags=["exercise"]
answer = None  # yours: a whole number
check(answer, solutions.nearest_is_itself(own))

# %% tags=["solution"] jupyter={"source_hidden": true}
count = own.products.shape[1]
cosines = own.products[0] @ own.products.reshape(-1, own.products.shape[2]).T
np.fill_diagonal(cosines, -1)
answer = int((cosines.argmax(axis=1) % count == np.arange(count)).sum())
check(answer, solutions.nearest_is_itself(own))

# %% [markdown]
# **2.** Of how many queries would you need to measure what taking out the language does to R@1, to find a
# change of 0.01 eight times of ten? (The power of a paired test goes with the square root of the number of
# queries; `found[MODEL][1]` and `without["language"][1]` have R@1 of each query.)

# %% tags=["exercise"]
answer = None  # yours: a number, to the nearest ten
changed = (without["language"][1]["R@1"] - found[MODEL][1]["R@1"]).to_numpy()
check(answer, solutions.queries_needed(changed, 0.01), within=10)

# %% tags=["solution"] jupyter={"source_hidden": true}
spread = changed.std(ddof=1)
size = detectable_difference(float(spread), len(changed)) if spread else 0.0
answer = round(len(changed) * (size / 0.01) ** 2)
check(answer, solutions.queries_needed(changed, 0.01), within=10)
