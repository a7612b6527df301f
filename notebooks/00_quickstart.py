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

# %%
import pandas as pd
import torch
from qwen_vl_utils import process_vision_info

import coral_lab as cl
from coral_lab.sources import shipped

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
print(f"embedding {ours.shape}, largest difference from the card's code {difference:.1e}")
assert difference < (1e-5 if model.dtype == torch.float32 else 1e-2)

# %% [markdown]
# ## Search
#
# Encode the pool once, then ask. **Prediction**, before you run it: the wanted class should be right nearly
# always. Of the conditions, which will the model miss first, those that are seen or those that are read?

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
# best-placed one,
# 0 beyond ten: as the paper's authors compute them. A query's own reference pictures are left out of its
# ranking.

# %%
result = cl.evaluate(model, shop.queries[:QUERIES], index)
result

# %%
result.by("attribute")[["value", "queries", "R@1", "R@1 low", "R@1 high", "R@10"]].round(3)

# %%
weakest = result.by("attribute").sort_values("R@1").iloc[0]
best = result.by("attribute").sort_values("R@1").iloc[-1]
print(f"We observe: queries that ask for {best['value']} are answered best (R@1 {best['R@1']:.2f}),")
print(f"those that ask for {weakest['value']} worst (R@1 {weakest['R@1']:.2f}).")

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
red = next(p for p in shop.products if p.attributes["color"] == ("red",))
striped = next(p for p in shop.products if p.attributes["pattern"] == ("stripes",))
mine = cl.Query(
    id="mine",
    class_name="handbag",
    conditions=(cl.Condition("color", red, "red"), cl.Condition("pattern", striped, "stripes")),
    text=".",
)
index.search(mine, k=5)

# %% [markdown]
# **A new format is five lines**: a function that yields text and products. Everything else works as before.


# %%
def as_list(query):
    yield f"Find a product of {query.class_name}:"
    for condition in query.conditions:
        yield f"\n- the same {condition.attribute} with "
        yield condition.product


card_format = cl.evaluate(model, shop.queries[:QUERIES], index)
list_format = cl.evaluate(model, shop.queries[:QUERIES], index, format=as_list)
pd.DataFrame(
    {
        name: {k: str(v) for k, v in r.metrics.items()}
        for name, r in {"the card's format": card_format, "as a list": list_format}.items()
    }
)

# %%
change = list_format.metrics["R@1"].mean - card_format.metrics["R@1"].mean
print(
    f"We observe: R@1 changes by {change:+.3f}. The model was trained on the card's wording, not on a list's."
)

# %% [markdown]
# ## Summary
#
# - A query is data: a wanted class, conditions in order, free text. `cl.messages` words it as the model card
#   does.
# - `cl.encode`, `cl.index`, `index.search` and `cl.evaluate` are all it takes, and give what the card's code
#   gives.
# - What a model cannot see or read, it cannot retrieve by: look at the breakdown by attribute first.
#
# **Exercise.** Swap the two conditions of `mine` with `mine.reordered((1, 0))` and search again. Do the first
# five change? Then leave the titles out of the references (`dataclasses.replace(red, title="")`): which
# attributes suffer?
