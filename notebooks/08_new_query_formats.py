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
# 2506.03144](https://arxiv.org/abs/2506.03144)).

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
from coral_lab.metrics import estimate, paired_difference, reciprocal_rank
from coral_lab.prompts import parts, seq
from coral_lab.query import AS_IMAGE, right_answers
from coral_lab.sources import shipped
from coral_lab.study.comparison import compare_edits, conditions_met, first_hits, judged
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
# `parts` gives what the model reads: texts, and products where a picture goes. **Prediction.** Write down
# what the function below yields for this query, before you run it: how many texts, how many pictures?


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
# **Prediction.** Which comes nearest to the card's own wording, which last? A model that reads should not
# mind a list; one that has learnt a template will.

# %%
table = sweep(index, queries, formats=formats, k=K)
ranks = table["rank"].to_numpy()
table["R@1"], table["R@10"] = (((ranks > 0) & (ranks <= k)).astype(float) for k in (1, 10))
table["MRR@10"] = reciprocal_rank(np.where(ranks > 0, ranks, -1))
measured = {name: estimates_by(table, "format", name) for name in ("R@1", "R@10", "MRR@10")}
pd.DataFrame(measured).map(str).rename_axis("format")

# %%
bars(measured["R@1"], "The same queries in other words", "R@1")

# %% [markdown]
# The same queries, so paired tests; several comparisons, so Holm's correction. `ranks` is the median shift
# of the right answer, `worse` the share of queries whose answer fell.

# %%
tests = compare_edits(table, "format", "card").sort_values("difference", ascending=False)
tests.round(4)

# %%
differences(tests, "R@1, against the card's wording", "difference in R@1")

# %%
told = tests[tests["p (Holm)"] < 0.05]
print(
    f"We observe: of the others '{tests.index[0]}' comes nearest to it ({tests['difference'].iloc[0]:+.3f}), "
    f"'{tests.index[-1]}' worst ({tests['difference'].iloc[-1]:+.3f})."
)
print(f"Told from the card's: {', '.join(told.index) or 'none'}.")

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
# The query whose answer fell furthest with the best of the other formats: as the card words it, and then in
# the new way, with how far each hit has moved.

# %%
new = tests.index[0]
places = table.pivot(index="query", columns="format", values="rank")
furthest = (places[new] - places["card"]).idxmax()
fallen = next(query for query in queries if query.id == furthest)
print(
    f"'{new}': the best right answer goes from rank {places.loc[furthest, 'card']} to "
    f"{places.loc[furthest, new]}"
)
fallen

# %%
before = {hit.product.id: hit.rank for hit in index.search(fallen, 100)}
HTML(index.search(fallen, 5).gallery())

# %%
HTML(index.search(fallen, 5, format=formats[new]).gallery(before))

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
# twice the query with the first condition alone, less the query with both. **Prediction.** Which of the two
# is heard?

# %%
first_only = [query.edited(conditions=query.conditions[:1]) for query in turned]
asks_both, asks_one = cl.encode(model, turned), cl.encode(model, first_only)
spoken = cl.encode(model, turned, format=but_not)
ways = {"both asked for": asks_both, "second left out": asks_one, "'but not' in words": spoken}
ways["arithmetic"] = 2 * asks_one - asks_both

# %%
answers = {name: judged(index, turned, rows) for name, rows in ways.items()}
met = {
    name: conditions_met(turned, first_hits(result)).set_index("place") for name, result in answers.items()
}
shares = {
    "right answer first": {name: result.metrics["R@1"] for name, result in answers.items()},
    "wanted value first": {name: estimate(own.loc[0, "met"].to_numpy()) for name, own in met.items()},
    "ruled-out value first": {name: estimate(own.loc[1, "met"].to_numpy()) for name, own in met.items()},
}
bars(shares, "A wanted value, and one that is ruled out", "share of queries")

# %%
verdicts = {-1: "is heard", 0: "cannot be told from saying nothing", 1: "does the opposite"}
ruled_out = {name: own.loc[1, "met"].to_numpy() for name, own in met.items()}
for name in ("'but not' in words", "arithmetic"):
    change = paired_difference(ruled_out[name], ruled_out["second left out"])
    print(
        f"We observe, {name}: the ruled-out value comes first {change.mean:+.3f} [{change.low:+.3f}, "
        f"{change.high:+.3f}]"
    )
    print(f"  against leaving the condition out; it {verdicts[int(change.low > 0) - int(change.high < 0)]}.")

# %% [markdown]
# ## Weights: *this* matters more
#
# In words, "above all" before one condition and "if possible" before the other. If they are heard, the
# first hit should meet a condition more often when it is stressed than when the other one is.


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
for place, word in enumerate(("first", "second")):
    change = paired_difference(found[place][place].to_numpy(), found[1 - place][place].to_numpy())
    print(
        f"We observe: stressing the {word} condition in words changes how often it is met by "
        f"{change.mean:+.3f} "
        f"[{change.low:+.3f}, {change.high:+.3f}], p {change.p:.3f}."
    )

# %% [markdown]
# In numbers: each condition asked alone, and a weighted mean of the two embeddings. **Prediction.** Half
# and half: is that as good as asking for both in one sentence?

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
change = paired_difference(sentence, halves)
verdict = "can be told apart" if change.p < 0.05 else "cannot be told apart"
print(
    f"We observe: R@1 {sentence.mean():.3f} in one sentence, {halves.mean():.3f} as a mean of two: "
    f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}], p {change.p:.3f}; they {verdict}."
)

# %% [markdown]
# ## Summary
#
# - A format is a function; a comparison is the same queries, an interval and a paired test.
# - New words for an old question cost little to try. A new question (*not*, *above all*) needs a test of
#   its own: compare it with saying nothing, not only with the old question.
#
# **Exercise.** Is a list less sensitive to the order of its conditions than a sentence? Sweep
# `edits.orders` with `formats={"card": seq, "as a list": as_list}` and compare their `overlap`. Predict
# first.
