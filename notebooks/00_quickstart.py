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
# # Quickstart: one question, a ranked gallery
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/00_quickstart.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/00_quickstart.ipynb)
#
# **Question.** A shopper points at two pictures: *"a backpack with the brand of this one and the colour of
# that one"*. Can one embedding of that whole sentence, pictures included, find the right product among
# thousands?
#
# CORAL says yes: a Qwen2.5-VL that reads the interleaved query, and whose last hidden state is the embedding
# ([arXiv 2506.03144](https://arxiv.org/abs/2506.03144)). This notebook runs on **coral-mini**, a small model
# of the same architecture that ships with this repository, over **MERIT-mini**, a catalogue of drawn
# products. Its figures say nothing about the paper's model. MODEL below takes any other checkpoint.
#
# About 2 minutes on two cores · first steps

# %% tags=["install"]
# In the workbench's own environment this does nothing. On Colab or Kaggle it installs the package:
# by its name, or put the path of a wheel of your own in its place.
from importlib.util import find_spec

from IPython import get_ipython

if find_spec("coral_lab") is None:
    get_ipython().run_line_magic("pip", "install --quiet coral-lab[all]")

# %% tags=["parameters"]
MODEL = "mini"  # or "Bia/CORAL", or a folder
DATA = "mini"  # or "WeiChow/merit", or a folder with its files
QUERIES = 300  # how many queries to measure with
K = 10
WANTED, LIKE = "handbag", {"color": "red", "pattern": "stripes"}  # a query of your own

# %%
from dataclasses import replace

import pandas as pd
import torch
from qwen_vl_utils import process_vision_info

import coral_lab as cl
from coral_lab.metrics import paired_difference
from coral_lab.sources import shipped
from coral_lab.study import conditions_met, first_hits, solutions
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import bars, estimates_by

model = cl.load(MODEL)
shop = cl.dataset(DATA, on_error="skip", sample=500)
print(f"{len(shop.products):,} products to find, {len(shop.queries):,} queries")
model

# %% [markdown]
# ## A product and a query show themselves
#
# A product is a picture, a title in one of five languages, and facts. The picture shows some of them, the
# title says others: brand and pattern can be seen, material and origin only read.

# %%
shop.products[0]

# %%
query = next(query for query in shop.queries if len(query.conditions) == 2)
query

# %% [markdown]
# ## The model card's code, by hand
#
# `messages` gives what the model card writes out by hand: text, picture, text, picture, text. The next cell
# is the card's own code, less its two `.to("cuda")`.

# %%
conversation = cl.messages(query)
text = model.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
images, videos = process_vision_info(conversation)
inputs = model.processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt")
with torch.inference_mode():
    outputs = model.network(**inputs.to(model.device), return_dict=True, output_hidden_states=True)
by_hand = torch.nn.functional.normalize(outputs.hidden_states[-1][:, -1, :], dim=-1)
print(text)

# %% [markdown]
# **Prediction.** `encode` runs the vision tower once for each picture, skips the language-model head and
# sorts texts by length. It should still give the same vector.

# %%
ours = cl.encode(model, query)
difference = abs(by_hand.float().cpu().numpy() - ours).max()
print(f"We observe: {ours.shape[1]} numbers, none further than {difference:.0e} from the card's code.")
assert difference < (1e-5 if model.dtype == torch.float32 else 1e-2)

# %% [markdown]
# ## Search
#
# Encode the pool once, then ask.

# %%
index = cl.index(model, shop.products)
hits = index.search(query, k=K)
hits

# %%
hits.table()

# %% [markdown]
# ## How good is that?
#
# R@k is the share of queries with a right answer among the first k; MRR@10 the mean of 1 / rank of the
# best-placed one, 0 beyond ten: as the paper's authors compute them. A query's own reference pictures are
# left out of its ranking. **Prediction.** Of ten queries, how many have a right answer first?

# %%
guess_first = None  # yours: a number from 0 to 10

# %%
result = cl.evaluate(model, shop.queries[:QUERIES], index)
result

# %%
guessed(guess_first, round(10 * result.metrics["R@1"].mean, 1), within=1)

# %%
asked = estimates_by(result.per_query.explode("attributes"), "attributes", "R@1")
bars(dict(sorted(asked.items(), key=lambda own: -own[1].mean)), "Queries that ask for this attribute", "R@1")

# %% [markdown]
# Where intervals overlap the figure cannot say which attribute is harder. A sharper question looks at
# conditions of the *same* query. **Prediction.** Of a query's conditions, which will the first hit miss more
# often, those that pictures show or those that only titles tell?

# %%
guess_missed = None  # yours: seen, read or neither

# %%
met = conditions_met(result.queries, first_hits(result))
met["kind"] = met["attribute"].isin(shop.traits.visual).map({True: "seen", False: "read"})
both = met.pivot_table(index="query", columns="kind", values="met").dropna()
found = paired_difference(both["seen"].to_numpy(), both["read"].to_numpy())
seen, read = both["seen"].mean(), both["read"].mean()
print(f"We observe, in {found.n} queries with both kinds: met are {seen:.1%} of the seen,", end=" ")
print(f"{read:.1%} of the read: {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}].")
told = "can" if found.p < 0.05 else "cannot"
print(f"The two {told} be told apart, p {found.p:.4f}.")
missed = "neither" if found.p >= 0.05 else "read" if found.mean > 0 else "seen"
guessed(guess_missed, missed, of=("seen", "read", "neither"))

# %% [markdown]
# The paper's figures are for a model two thousand times larger on 51,177 photographs; the last two rows are
# what somebody else measured there. They stand here for orientation, and cannot be compared with ours.

# %%
published = pd.read_csv(shipped("data/published.csv"))
published[["method", "size", "input", "training", "R@1", "R@5", "R@10", "MRR@10", "source"]]

# %% [markdown]
# ## A query of your own
#
# Choose any products as references. What is wanted, and which attribute of each, is up to you; `text` says
# the rest.

# %%
like = {
    attribute: next(p for p in shop.products if value in p.attributes.get(attribute, ()))
    for attribute, value in LIKE.items()
}
mine = cl.Query(
    id="mine",
    class_name=WANTED,
    conditions=tuple(cl.Condition(attribute, like[attribute], value) for attribute, value in LIKE.items()),
    text=".",
)
index.search(mine, k=5)

# %% [markdown]
# **A new format is five lines**: a function that yields text and products. Everything else works as before.
# **Prediction.** The list asks for the same. Will R@1 be higher, lower or the same?

# %%
guess_list = None  # yours: higher, lower or same


# %%
def as_list(query):
    yield f"Find a product of {query.class_name}:"
    for condition in query.conditions:
        yield f"\n- the same {condition.attribute} with "
        yield condition.product


as_listed = cl.evaluate(model, shop.queries[:QUERIES], index, format=as_list)
pd.DataFrame(
    {
        name: {metric: str(value) for metric, value in own.metrics.items()}
        for name, own in {"the card's format": result, "as a list": as_listed}.items()
    }
)

# %%
found = paired_difference(as_listed.per_query["R@1"].to_numpy(), result.per_query["R@1"].to_numpy())
print(f"We observe: R@1 changes by {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p {found.p:.4f}.")
print("The model was trained on the card's wording, not on a list's.")
change = "same" if found.p >= 0.05 else "higher" if found.mean > 0 else "lower"
guessed(guess_list, change, of=("higher", "lower", "same"))

# %% [markdown]
# ## Summary
#
# - A query is data: a wanted class, conditions in order, free text. `cl.messages` words it as the model card
#   does.
# - `cl.encode`, `cl.index`, `index.search` and `cl.evaluate` are all it takes, and give what the card's code
#   gives.
# - What a model cannot see or read, it cannot retrieve by: look at the breakdown by attribute first.
#
# **Exercise 1.** Swap the two conditions of `mine` with `mine.reordered((1, 0))` and search again. How many
# of the first ten hits are still among the first ten?

# %% tags=["exercise"]
answer = None  # yours: a number from 0 to 10
check(answer, solutions.hits_kept(index, mine, mine.reordered((1, 0)), 10))

# %% tags=["solution"] jupyter={"source_hidden": true}
before, after = ({hit.product for hit in index.search(q)} for q in (mine, mine.reordered((1, 0))))
answer = len(before & after)
check(answer, solutions.hits_kept(index, mine, mine.reordered((1, 0)), 10))

# %% [markdown]
# **Exercise 2.** `untitled` below is `mine` without the titles of its references. How many of its first five
# hits have the wanted class and meet every condition?

# %% tags=["exercise"]
blank = [replace(c, product=replace(c.product, title="")) for c in mine.conditions]
untitled = mine.edited(conditions=tuple(blank))
answer = None  # yours: a number from 0 to 5
check(answer, solutions.right_hits(index, untitled, 5))

# %% tags=["solution"] jupyter={"source_hidden": true}
five = [hit.product for hit in index.search(untitled, k=5)]
answer = sum(p.class_name == WANTED and all(c.met_by(p) for c in untitled.conditions) for p in five)
check(answer, solutions.right_hits(index, untitled, 5))
