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
# # The training objective: what Coral adds to contrastive learning
#
# [Open in
# Colab](https://colab.research.google.com/github/coral-lab/coral_lab/blob/main/notebooks/06_training_objective.ipynb)
# [Open in
# Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/coral-lab/coral_lab/blob/main/notebooks/06_training_objective.ipynb)
#
# **Question.** CORAL was trained with three losses: queries are pulled to their products (*contrastive*), and
# the product is rebuilt from one vector, its picture (*vision reconstruction*) and its words (*masked
# language modelling*). The paper reports +45.9% R@1 over contrastive training alone ([arXiv
# 2506.03144](https://arxiv.org/abs/2506.03144)). What does each term ask of the model?
#
# Each term first on a toy that you can check by hand, then on products, then in a training run. Everything
# runs on **coral-mini** and drawn products; its figures say nothing about the paper's model.
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
MODEL = "mini-base"  # where training starts; or a folder, or a hub id
TRAINED = "mini"  # a checkpoint with decoders beside it
CHECKPOINTS = ["mini-base", "mini-contrastive", "mini"]  # what to compare
QUERIES = 2000  # how many queries to measure with
PRODUCTS = 3000  # to search among: all right answers and others
STEPS = 20  # of the short run
SEED = 0

# %%
import math
import tempfile

import pandas as pd
import torch

import coral_lab as cl
from coral_lab.metrics import paired_difference
from coral_lab.mini.pairs import mini_pairs
from coral_lab.replication.cells import compare_arms, read_results, results_file
from coral_lab.replication.experiments import ARMS
from coral_lab.sources import shipped
from coral_lab.study import solutions
from coral_lab.study.exercises import check, guessed
from coral_lab.study.plots import curves
from coral_lab.training.batches import make_batch
from coral_lab.training.config import TrainConfig
from coral_lab.training.contrastive import contrastive_objective, gradients
from coral_lab.training.learner import Learner
from coral_lab.training.loop import train_loop
from coral_lab.training.losses import info_nce, masked_language_modelling, vision_reconstruction
from coral_lab.training.pairs import pair_sampler
from coral_lab.training.rebuilding import rebuild
from coral_lab.training.reconstruction import Coral, decoders, load_decoders
from coral_lab.widgets.parts import LivePlot

# %% [markdown]
# ## 1. Contrastive: the right answer must stand out
#
# *L*_cl = −(1/N) Σᵢ log ( exp(qᵢ · kᵢ⁺ / τ) / Σⱼ exp(qᵢ · kⱼ / τ) )
#
# **Prediction.** Three queries, three candidates. If all embeddings are zero the model knows nothing, and
# each of three candidates is as likely as another. What is the loss?

# %%
guess = None  # yours: a number

# %%
nothing = info_nce(torch.zeros(3, 2), torch.zeros(3, 2), temperature=1.0)
print(f"We observe: loss {nothing:.4f}; log 3 = {math.log(3):.4f}")
guessed(guess, nothing.item(), within=0.05)

# %% [markdown]
# Now one query at 0°, its answer at 20°, and a wrong candidate at 40°. By hand, with τ = 0.1:
# −log ( exp(cos 20° / 0.1) / (exp(cos 20° / 0.1) + exp(cos 40° / 0.1)) ).


# %%
def at(*degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


right, wrong = math.exp(math.cos(math.radians(20)) / 0.1), math.exp(math.cos(math.radians(40)) / 0.1)
print(f"by hand {-math.log(right / (right + wrong)):.4f}, info_nce {info_nce(at(0), at(20, 40), 0.1):.4f}")
pd.DataFrame(
    {
        "τ": [0.02, 0.04, 0.1, 1.0],
        "loss": [info_nce(at(0), at(20, 40), τ).item() for τ in (0.02, 0.04, 0.1, 1.0)],
    }
).round(4)

# %% [markdown]
# We observe: a small τ is content with a small lead, and then stops pushing. A large τ never is.
#
# **Other right answers.** MERIT's queries have several positives. If the candidate at 40° is right as well,
# pushing it away is a mistake: it is left out of the sum, and one candidate remains that cannot be confused
# with anything.

# %%
also = torch.tensor([[True, True]])
print(
    f"counted as wrong {info_nce(at(0), at(20, 40), 0.1):.4f}, left out "
    f"{info_nce(at(0), at(20, 40), 0.1, also):.4f}"
)

# %% [markdown]
# ## 2. Vision reconstruction: the embedding must know what the product looks like
#
# Half of the target's image tokens are hidden (δ = 0.5). A one-layer decoder reads what is left *and one
# vector*, h_eos, and predicts the hidden features. **Prediction.** What does a decoder cost that says nothing
# (zeros) about features of variance 1? And a perfect one?

# %%
guess = None  # yours: a number, for the one that says nothing

# %%
features = torch.nn.functional.layer_norm(torch.randn(9, 128), (128,))
hidden = torch.arange(9) % 2 == 0
silent = vision_reconstruction(torch.zeros(9, 128), features, hidden)
perfect = vision_reconstruction(features, features, hidden)
print(f"We observe: {silent:.3f} if it says nothing, {perfect:.3f} if it is perfect.")
guessed(guess, silent.item(), within=0.05)

# %% [markdown]
# ## 3. Masked language modelling: and what its title says
#
# The same for words, through the model's own LM head. **Prediction.** With a vocabulary of seven words and no
# idea?

# %%
vocabulary, words = torch.randn(7, 4), torch.tensor([0, 3, 6])
loss = masked_language_modelling(torch.zeros(3, 4), vocabulary, words, torch.tensor([True, False, True]))
print(f"We observe: loss {loss:.4f}; log 7 = {math.log(7):.4f}")
unhidden = masked_language_modelling(torch.zeros(3, 4), vocabulary, words, torch.zeros(3) > 0)
print(f"nothing hidden: {unhidden:.1f}, no NaN")

# %% [markdown]
# ## 4. From whose vector?
#
# Both terms rebuild **the product that is sought**: `L_rec` from the product's own h_eos, `L_reg` from the
# query's. A query that lets you rebuild its answer must know what it asks for. Look: grey is hidden; in its
# place stands the piece of another product's picture whose feature is nearest to the prediction (decoders
# predict features, not pixels).

# %%
shop, model = cl.dataset("mini"), cl.load(TRAINED)
trained = load_decoders(model, TRAINED)
query = next(
    q for q in shop.queries if len(q.conditions) == 3 and shop.product(q.positives[0]).language == "en"
)
target, gallery = shop.product(query.positives[0]), shop.products[:200]
query

# %%
rebuild(model, trained, target, gallery=gallery, seed=SEED)

# %%
rebuild(model, trained, target, query, gallery=gallery, seed=SEED)

# %% [markdown]
# One picture proves nothing. Over many pairs: how much of what is hidden can be told from the right query's
# h_eos, and how much from another query's? The difference is what the *vector* contributes; the rest is read
# off what was left. **Prediction.** How much of the vision loss does the right query's vector save?

# %%
guess_saved = None  # yours: a share from 0 to 1

# %%
pairs = pair_sampler(shop, mini_pairs(shop), 64, STEPS, SEED)(0)
torch.manual_seed(SEED)  # which tokens are hidden
batch = make_batch(model, pairs, trained.longest)
shuffled = make_batch(
    model,
    [type(p)(q.query, p.positive) for p, q in zip(pairs, pairs[1:] + pairs[:1], strict=True)],
    trained.longest,
)
shuffled = type(batch)(shuffled.queries, batch.positives, (), batch.also_positive, batch.draws)
told = {
    name: gradients(Learner(model, trained, Coral()), b)
    for name, b in {"its query": batch, "another query": shuffled}.items()
}
model.network.zero_grad()
table = pd.DataFrame(told).loc[["reg vision", "reg language"]].round(3)
table

# %%
gain = 1 - table["its query"] / table["another query"]
print(f"We observe: the right query's vector saves {gain['reg vision']:.0%} of the vision loss")
print(f"and {gain['reg language']:.0%} of the language loss.")
guessed(guess_saved, float(gain["reg vision"]), within=0.05)

# %% [markdown]
# ## 5. One step, in whatever memory there is
#
# A contrastive batch wants to be large, and every pair has several pictures. GradCache embeds the batch part
# by part and gives the same gradients. **Prediction.** How far apart are the gradients of a batch of 64 at
# once and 8 at a time?


# %%
def gradient(chunk):
    model.network.zero_grad()
    terms = gradients(Learner(model, trained, Coral()), batch, chunk)
    return terms, torch.cat([p.grad.flatten() for p in model.network.parameters()])


(whole, expected), (parts, found) = gradient(None), gradient(8)
apart, largest = (found - expected).abs().max(), expected.abs().max()
print(f"We observe: they differ by {apart:.1e} at most; the largest gradient is {largest:.1e}.")
pd.DataFrame({"at once": whole, "8 at a time": parts}).drop("padding").round(5)

# %% [markdown]
# ## 6. A short run, live
#
# From the base, sixteen pairs again and again: can every term be learnt by heart? In JupyterLab the plot
# grows as the run goes on; the figure below it is what stays.

# %%
start, coral = cl.load(MODEL), Coral()
heads = decoders(start, coral, SEED)
few = pair_sampler(shop, mini_pairs(shop), 16, STEPS, SEED)(0)
live = LivePlot()
live

# %%
with tempfile.TemporaryDirectory() as folder:
    config = TrainConfig(steps=STEPS, learning_rate=2e-3, warmup=5, seed=SEED)
    objective = contrastive_objective(
        Learner(start, heads, coral), lambda step: make_batch(start, few, heads.longest)
    )
    train_loop(start, objective, config, folder, decoders=heads, on_step=live)
first, last = live.rows[0], live.rows[-1]
print(
    "We observe:",
    ", ".join(f"{name} {first[name]:.2f} → {last[name]:.2f}" for name in ("contrastive", *coral.weights)),
)
live.static()

# %% [markdown]
# ## 7. The trained checkpoints
#
# `mini-contrastive` and `mini` (Coral) come from the same base, with the same batches and steps; only the
# objective differs. Their logs are read from `data/results/`.

# %%
logs = {name: shipped(f"data/results/train-{name}.csv") for name in ("contrastive", "coral")}
curves(logs, losses=["contrastive"], measures=["R@1", "R@10"])

# %%
queries = shop.queries[:QUERIES]
pool = shop.smaller_pool(queries, PRODUCTS)
results = {name: cl.evaluate(cl.load(name), queries, pool) for name in CHECKPOINTS}
pd.DataFrame(
    {
        name: {metric: str(value) for metric, value in result.metrics.items()}
        for name, result in results.items()
    }
).T

# %%
pd.DataFrame({name: result.met_by_first() for name, result in results.items()}).round(2)

# %%
before, after = (results[name].per_query["R@1"].to_numpy() for name in CHECKPOINTS[-2:])
change = paired_difference(after, before)
print(
    f"We observe, on the same {QUERIES} queries: R@1 of {CHECKPOINTS[-1]} less that of {CHECKPOINTS[-2]} is "
    f"{change.mean:+.3f}"
)
print(
    f"[{change.low:+.3f}, {change.high:+.3f}], p {change.p:.3f}: they "
    f"{'can' if change.p < 0.05 else 'cannot'} be told apart, by one seed each."
)

# %% [markdown]
# The paper's own figures (3B, full fine-tuning, 51,177 photographs), which these cannot be compared with:

# %%
published = pd.read_csv(shipped("data/published.csv")).query("source.str.startswith('arXiv')")
published[published["method"].str.contains("ontrastive|Coral|CORAL")][
    ["method", "size", "input", "training", "R@1", "R@10", "source"]
]

# %% [markdown]
# ## 8. Which term helps? An ablation
#
# One run proves little: another seed gives another figure. So eight objectives from the same base, each with
# the same seeds, batches and steps, shorter and with smaller batches than the shipped checkpoints (`coral-lab
# experiment loss-ablation` made the files read here). **Prediction.** Which is worth more, rebuilding from
# the query or from the target itself? And at which weight: a quarter of the shipped one (`coral 0.05`), or
# five times as much (`coral 1`)?

# %%
guess_term = None  # yours: query, target or neither

# %%
cells = read_results(results_file("loss-ablation"))
steps, batch, queries = cells.iloc[0][["steps", "batch_size", "queries"]]
print(f"{cells['seed'].nunique()} seeds, {steps} steps of {batch} pairs, {queries:,} test queries")
cells.pivot(index="arm", columns="seed", values="R@1").reindex(list(ARMS["loss-ablation"])).round(3)

# %% [markdown]
# Each against contrastive alone, on the same queries and seeds: a paired t test over seeds, since all queries
# of one training move together; p-values corrected for being seven (Holm). Three seeds see only what is three
# times as large as they differ by.

# %%
ablation = compare_arms(read_results(results_file("loss-ablation-ranks"), "query")).set_index("arm")
ablation.round(3)

# %%
change, p = ablation.loc["coral", ["difference", "p (Holm)"]]
print(f"We observe: Coral's R@1 is {change:+.3f} against contrastive alone (corrected p {p:.3f}):")
print(f"the two {'can' if p < 0.05 else 'cannot'} be told apart at this scale.")

# %%
alone = ablation.rename({"reg only": "query", "rec only": "target"}).loc[["query", "target"]]
for row in alone.itertuples():
    print(f"We observe, rebuilt from the {row.Index} alone: {row.difference:+.3f} of R@1.")
helps = alone.index[alone["p (Holm)"] < 0.05]
guessed(guess_term, helps[0] if len(helps) == 1 else "neither", of=("query", "target", "neither"))

# %% [markdown]
# ## Summary
#
# - L_cl ranks; L_rec asks the product's vector to keep what it stands for; L_reg asks the query's vector to
#   know what it is looking for.
# - Both reconstructions hide half, so a decoder can do much without h_eos. Look at what the *vector* saves
#   (section 4), not at the loss alone.
# - A weight of 0 switches a term off: `coral-lab train --vision 0 …`.
#
# **Exercise.** A query at 0°, its answer at 30°, wrong candidates at 60° and 90°, and τ = 0.5. What is the
# contrastive loss? By hand, or by `info_nce`.

# %% tags=["exercise"]
answer = None  # yours: a number
check(answer, solutions.contrastive_loss([30, 60, 90], 0.5), within=0.005)

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = info_nce(at(0), at(30, 60, 90), 0.5).item()
check(answer, solutions.contrastive_loss([30, 60, 90], 0.5), within=0.005)

# %% [markdown]
# **To go on.** Train from the base with `--lambda2 0` (L_reg only) for 200 steps, then with `--lambda1 0`.
# Which of the two makes the *query's* vector tell more (section 4)? Predict first.
