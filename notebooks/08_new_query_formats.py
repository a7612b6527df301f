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
# # New query formats: five lines, and an honest comparison
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/08_new_query_formats.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/08_new_query_formats.ipynb)
#
# **Question.** The model card words a query in one way. Would another way be understood as well, before any
# training on it? Could one say *not like this picture*, or *this matters more*?
#
# A format is a function from a query to text and products. Everything else (encoding, search, metrics, the
# sweeps) takes it as it is. Measured on **coral-mini**, which was trained on the card's wording ([arXiv
# 2506.03144](https://arxiv.org/abs/2506.03144)); MODEL and DATA take any other. One rule everywhere: *p
# (Holm) < 0.05, and two things can be told apart*.
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
MODEL = "mini"  # or "Bia/CORAL", or a folder
DATA = "mini"  # or "WeiChow/merit", a folder with its files, a table of your own
QUERIES = 200
PRODUCTS = 3000  # to search among: all right answers and others
K = 10

# %%
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from IPython.display import HTML

import coral_lab as cl
from coral_lab.metrics import estimate, holm, paired_difference, reciprocal_rank
from coral_lab.prompts import parts, seq
from coral_lab.query import AS_IMAGE, right_answers
from coral_lab.sources import shipped
from coral_lab.study import edits, solutions
from coral_lab.study.comparison import compare_edits, conditions_met, first_hits, judged
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import bars, differences, estimates_by
from coral_lab.study.sweeps import sweep

# %%
model = cl.load(MODEL)
shop = cl.dataset(DATA, on_error="skip", sample=500).having("queries")
queries = shop.queries[:QUERIES]
index = cl.index(model, shop.smaller_pool(queries, PRODUCTS))
print(f"{len(queries)} queries over {len(index.products):,} products")

# %% [markdown]
# ## The card's wording, and a new one
#
# `parts` gives what the model reads: texts, joined where they meet, and products where a picture goes.
#
# **Prediction.** Of how many texts is the query below made, by the function below?

# %%
guess_texts = None  # yours: a whole number


# %%
def as_list(query):
    yield f"Find a product of {query.class_name}:"
    for condition in query.conditions:
        yield f"\n- the same {condition.attribute} with "
        yield condition.product
        yield f" {condition.product.title}"


query = next(query for query in queries if len(query.conditions) == 2)
query

# %%
for name, format in {"card": seq, "as a list": as_list}.items():
    found = parts(query, format)
    pictures = sum(not isinstance(part, str) for part in found)
    print(f"{name}: {len(found) - pictures} texts, {pictures} pictures")
    print("  " + "".join(part if isinstance(part, str) else "🖼" for part in found).replace("\n", "⏎"))
guessed(guess_texts, sum(isinstance(part, str) for part in parts(query, as_list)))

# %% [markdown]
# ## More ideas
#
# Pictures first and the sentence after; no titles; as few words as possible. Beside them what the workbench
# brings: all pictures pasted into one (the paper's *Cat*), and pictures replaced by descriptions.


# %%
def images_first(query):
    for number, product in enumerate(query.references, 1):
        yield f"<Product {number}> "
        yield product
    yield from (part for part in seq(query) if isinstance(part, str))


# %%
def no_titles(query):
    yield from seq(
        replace(
            query, conditions=[replace(c, product=replace(c.product, title="")) for c in query.conditions]
        )
    )


# %%
def short(query):
    yield query.class_name
    for condition in query.conditions:
        yield f", {condition.attribute} as "
        yield condition.product
    yield query.text


# %%
formats = {
    "card": seq,
    "as a list": as_list,
    "images first": images_first,
    "no titles": no_titles,
    "short": short,
    "one picture": "cat",
    "described": "caption",
}
texts = {
    name: "".join(p if isinstance(p, str) else "🖼" for p in parts(query, f)) for name, f in formats.items()
}
for name, text in texts.items():
    print(f"{name:13s}", text.replace("\n", "⏎")[:96] + "…" * (len(text) > 96))

# %% [markdown]
# **Prediction.** A model that reads should not mind a list; one that has learnt a template will. How many
# of the six others can be told apart from the card's wording, by R@1?

# %%
guess_told = None  # yours: a number from 0 to 6

# %%
table = sweep(index, queries, formats=formats, k=K)
ranks = table["rank"].to_numpy()
table["R@1"], table["R@10"] = (((ranks > 0) & (ranks <= k)).astype(float) for k in (1, 10))
table["MRR@10"] = reciprocal_rank(np.where(ranks > 0, ranks, -1))
measured = {name: estimates_by(table, "format", name) for name in ("R@1", "R@10", "MRR@10")}
pd.DataFrame(measured).map(str).rename_axis("format")

# %% [markdown]
# The same queries, so paired tests; several comparisons, so Holm's correction. `ranks` is the median shift
# of the right answer, `worse` the share of queries whose answer fell.

# %%
tests = compare_edits(table, "format", "card").sort_values("difference", ascending=False)
tests.round(4)

# %%
differences(tests, "R@1, against the card's wording", "difference in R@1")

# %%
told = tests.index[tests["p (Holm)"] < 0.05]
print(f"We observe: can be told apart from the card's: {', '.join(told) or 'none'}.")
guessed(guess_told, len(told))

# %% [markdown]
# Is one of the others nearer to the card's than the rest? The highest of them, against each of the others:

# %%
highest = tests.index[0]
rest = compare_edits(table[table["format"] != "card"], "format", highest)
tied = rest.index[rest["p (Holm)"] >= 0.05]
print(f"We observe: highest of the others is '{highest}' ({tests.loc[highest, 'difference']:+.3f});")
print(f"cannot be told apart from it: {', '.join(tied) or 'none'}.")

# %% [markdown]
# The paper compares two of these formats, *Seq* (the card's) and *Cat* (one picture), with a model two
# thousand times larger that was trained on either; ours was trained on the card's alone. For orientation,
# not for comparison:

# %%
published = pd.read_csv(shipped("data/published.csv"))
published[published["method"] == "Coral"][["method", "size", "input", "training", "R@1", "R@10", "source"]]

# %% [markdown]
# ## Look at what changed
#
# The query whose answer fell furthest with the highest of the other formats: as the card words it, and then
# in the new way, with how far each hit has moved.

# %%
places = table.pivot(index="query", columns="format", values="rank")
furthest = (places[highest] - places["card"]).idxmax()
fallen = next(query for query in queries if query.id == furthest)
ranks = places.loc[furthest]
print(f"'{highest}': the first right answer goes from rank {ranks['card']} to {ranks[highest]}")
fallen

# %%
before = {hit.product.id: hit.rank for hit in index.search(fallen, 100)}
HTML(index.search(fallen, 5).gallery())

# %%
HTML(index.search(fallen, 5, format=formats[highest]).gallery(before))

# %% [markdown]
# ## Negation: *not* like this picture
#
# A new *kind* of question: the first condition as always, the second turned round. Its right answers are
# known, because the catalogue's facts are: products with the first value and **not** the second.


# %%
def but_not(query):
    first, second = query.conditions
    yield from seq(replace(query, conditions=(first,), text=""))
    yield f" but not the same {second.attribute} with <Product 2> "
    yield second.product
    yield f"\n {second.product.title} </Product 2>."


# %%
known = [query for query in queries if all(c.value not in ("", AS_IMAGE) for c in query.conditions)]
plain = [replace(query, text=".") for query in known if len(query.conditions) == 2]
two = [replace(query, positives=right_answers(query, index.products)) for query in plain]
alone = [query.edited(conditions=query.conditions[:1]) for query in two]
fits = [[shop.product(id) for id in right_answers(query, index.products)] for query in alone]
right = [
    [p.id for p in own if not query.conditions[1].met_by(p)] for own, query in zip(fits, two, strict=True)
]
turned = [replace(query, positives=tuple(own)) for query, own in zip(two, right, strict=True) if own]
print(f"{len(turned)} queries, e.g.:")
print("".join(p if isinstance(p, str) else "🖼" for p in parts(turned[0], but_not)).replace("\n", "⏎"))

# %% [markdown]
# **Arithmetic instead of words.** What the second condition adds to an embedding can be taken away instead:
# twice the query with the first condition alone, less the query with both. By hand: if asking is adding,
# *both* = first + second, and 2 × first − (first + second) = first − second.
#
# **Prediction.** A *not* is heard if the ruled-out value comes first more rarely than when nothing is said
# of it. Which is heard: words, arithmetic, both or none?

# %%
guess_heard = None  # yours: a set such as {"words"}; set() for none

# %%
first_only = [query.edited(conditions=query.conditions[:1]) for query in turned]
asks_both, asks_one = cl.encode(model, turned), cl.encode(model, first_only)
spoken = cl.encode(model, turned, format=but_not)
ways = {"nothing": asks_one, "words": spoken, "arithmetic": 2 * asks_one - asks_both}
answers = {name: judged(index, turned, rows) for name, rows in ways.items()}
values = {name: {"right answer": own.per_query["R@1"].to_numpy()} for name, own in answers.items()}
for name, result in answers.items():
    met = conditions_met(turned, first_hits(result)).pivot(index="query", columns="place", values="met")
    values[name] |= {"wanted value": met[0].to_numpy(), "ruled-out value": met[1].to_numpy()}
pd.DataFrame({name: {key: str(estimate(one)) for key, one in own.items()} for name, own in values.items()})

# %%
said = {
    f"{what}: {way}": vars(paired_difference(values[way][what], nothing))
    for way in ("words", "arithmetic")
    for what, nothing in values["nothing"].items()
}
said = pd.DataFrame(said).T.rename(columns={"mean": "difference"})
said["p (Holm)"] = holm(said["p"].to_numpy())
differences(said, "What comes first, against saying nothing", "difference in share of queries")

# %%
told = said[said["p (Holm)"] < 0.05]["difference"]
for name in said.index:
    verdict = "can be told apart" if name in told.index else "cannot be told apart"
    print(f"We observe, {name} {said.loc[name, 'difference']:+.3f}; {verdict} from saying nothing.")
heard = {way for way in ("words", "arithmetic") if told.get(f"ruled-out value: {way}", 0) < 0}
guessed(guess_heard, heard)

# %% [markdown]
# ## Weights: *this* matters more
#
# In words, "above all" before one condition and "if possible" before the other. If they are heard, the
# first hit should meet a condition more often when it is stressed than when the other one is.
#
# **Prediction.** Are they heard, by a model that was never taught these words?


# %%
def stressed(query, which):
    yield f"Find a product of {query.class_name} that have"
    for number, condition in enumerate(query.conditions):
        mark = "above all" if number == which else "if possible"
        yield f"{' and' * (number > 0)} {mark} the same {condition.attribute} with <Product {number + 1}> "
        yield condition.product
        yield f"\n {condition.product.title} </Product {number + 1}>"
    yield query.text


# %%
asked = {which: cl.encode(model, two, format=partial(stressed, which=which)) for which in (0, 1)}
hits = {which: conditions_met(two, first_hits(judged(index, two, rows))) for which, rows in asked.items()}
found = {which: own.set_index("place")["met"] for which, own in hits.items()}
stress = {}
for place, word in enumerate(("first", "second")):
    own = [found[which][place].to_numpy() for which in (place, 1 - place)]
    stress[word] = vars(paired_difference(*own))
stress = pd.DataFrame(stress).T.rename(columns={"mean": "difference"})
stress["p (Holm)"] = holm(stress["p"].to_numpy())
for word, row in stress.iterrows():
    verdict = "can be told apart" if row["p (Holm)"] < 0.05 else "cannot be told apart"
    print(f"We observe: stressing the {word} condition, it is met by {row['difference']:+.3f} more", end=" ")
    print(f"[{row['low']:+.3f}, {row['high']:+.3f}]; {verdict} from stressing the other.")

# %% [markdown]
# In numbers: each condition asked alone, and a weighted mean of the two embeddings.
#
# **Prediction.** Half and half: is R@1 higher or lower than asking for both in one sentence?

# %%
guess_halves = None  # yours: higher, lower or neither

# %%
singles = [
    cl.encode(model, [query.edited(conditions=query.conditions[i : i + 1]) for query in two]) for i in (0, 1)
]
weights = {f"{share:.0%} first": share for share in (1.0, 0.75, 0.5, 0.25, 0.0)}
mixed = {name: judged(index, two, w * singles[0] + (1 - w) * singles[1]) for name, w in weights.items()}
mixed["one sentence"] = judged(index, two, cl.encode(model, two))
met = {
    name: conditions_met(two, first_hits(result)).set_index("place")["met"] for name, result in mixed.items()
}
dial = {"first condition met": 0, "second condition met": 1}
shares = {
    name: {way: estimate(own[place].to_numpy()) for way, own in met.items()} for name, place in dial.items()
}
bars(shares, "The first hit, by the weight of the first condition", "share")

# %%
halves, sentence = (mixed[name].per_query["R@1"].to_numpy() for name in ("50% first", "one sentence"))
gap = paired_difference(halves, sentence)
print(
    f"We observe: R@1 {halves.mean():.3f} as a mean of two, {sentence.mean():.3f} in one sentence:", end=" "
)
print(f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], p {gap.p:.2g}.")
side = "neither" if gap.p >= 0.05 else "higher" if gap.mean > 0 else "lower"
guessed(guess_halves, side, of=("higher", "lower", "neither"))

# %% [markdown]
# ## Summary
#
# - A format is a function; a comparison is the same queries, an interval and a paired test.
# - New words for an old question cost little to try. A new question (*not*, *above all*) needs a test of
#   its own: compare it with saying nothing, not only with the old question.
#
# ## Exercises
#
# **1.** Write a format that shows no pictures and leaves all words where they are. What is its R@1 on the
# first 60 queries? Predict first whether titles alone do better than `no titles` did.

# %% tags=["exercise"]
answer = None  # yours: a number from 0 to 1
check(answer, solutions.r_at_1_of_titles(index, queries[:60]), within=0.02)


# %% tags=["solution"] jupyter={"source_hidden": true}
def no_pictures(query):
    yield from (part for part in seq(query) if isinstance(part, str))


few = sweep(index, queries[:60], formats={"no pictures": no_pictures, "no titles": no_titles})
first = few.assign(right=few["rank"] == 1).groupby("format")["right"].mean()
print(first.to_dict())
answer = first["no pictures"]
check(answer, solutions.r_at_1_of_titles(index, queries[:60]), within=0.02)

# %% [markdown]
# **2.** Does a list mind the order of its conditions? Take the first 60 of the queries of two conditions
# (`two`), ask each `as_list` in both orders, and count: of how many does the first hit change? Then do it
# with `seq`.

# %% tags=["exercise"]
answer = None  # yours: a whole number
check(answer, solutions.first_hits_changed(index, two[:60], as_list), within=1)

# %% tags=["solution"] jupyter={"source_hidden": true}
some = {"sentence": seq, "list": as_list}
turns = sweep(index, two[:60], edits.orders, formats=some).query("edit != 'as asked'")
changed = turns.groupby(["format", "query"])["first"].nunique().eq(2).groupby("format").sum()
print(changed.to_dict())
answer = int(changed["list"])
check(answer, solutions.first_hits_changed(index, two[:60], as_list), within=1)
