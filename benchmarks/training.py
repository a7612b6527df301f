"""How many pairs a second are learnt from, beside the loop that anyone would write from the model card's
code.

python benchmarks/training.py     coral-mini's base, 128 pairs a step, float32, a minute

Both loops learn the same pairs from the same weights in turn, one step each, and their losses are held
against each other. The plain loop gets its pictures opened; ours keeps them processed, as it does from the
second epoch on. A row of its own says what the first epoch costs. PROFILE=1 names the top costs of a step.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from qwen_vl_utils import process_vision_info
from table import keep, profiled, ratios, row
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from coral_lab import Product, dataset, load, messages
from coral_lab.sources.package_files import shipped
from coral_lab.training.batches import Pair, make_batch
from coral_lab.training.config import TrainConfig, learning_rate
from coral_lab.training.contrastive import contrastive_objective
from coral_lab.training.learner import Learner
from coral_lab.training.loop import train_loop
from coral_lab.training.pairs import pair_sampler, plain_pairs
from coral_lab.training.reconstruction import CONTRASTIVE, decoders

NAME, BATCH, RUNS, WARM = "mini-base", 128, 7, 1
CONFIG = TrainConfig(steps=RUNS + WARM, warmup=4, weight_decay=0.0, checkpoint_every=1000)


def opened() -> Callable[[int], list[Pair]]:
    """The pairs of each step; their pictures are PIL images in memory."""
    shop, images = dataset("mini", "val"), {}

    def picture(product: Product) -> Product:
        if product.id not in images:
            images[product.id] = replace(product, image=product.picture)
        return images[product.id]

    def pair(own: Pair) -> Pair:
        conditions = [replace(c, product=picture(c.product)) for c in own.query.conditions]
        return Pair(replace(own.query, conditions=conditions), picture(own.positive))

    sampler = pair_sampler(shop, plain_pairs(shop), BATCH, CONFIG.steps)
    steps = [[pair(own) for own in sampler(step)] for step in range(CONFIG.steps)]
    return steps.__getitem__


def plain_loop() -> Callable[[int, Sequence[Pair]], float]:
    """A training step as one writes it from the card: read, embed, InfoNCE, AdamW. It returns the loss."""
    folder = shipped("data/coral-mini-base")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    processor = AutoProcessor.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), betas=CONFIG.betas, weight_decay=0.0)

    def embed(items) -> torch.Tensor:
        chats = [messages(item) for item in items]
        text = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        images, _ = process_vision_info(chats)
        inputs = processor(text=text, images=images, padding=True, return_tensors="pt")
        return normalize(model.model(**inputs).last_hidden_state[:, -1], dim=-1)

    def step(number: int, pairs: Sequence[Pair]) -> float:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, CONFIG)
        scores = embed(pair.query for pair in pairs) @ embed(pair.positive for pair in pairs).T
        right = [[other.positive.id in pair.query.positives for other in pairs] for pair in pairs]
        others = torch.tensor(right) & ~torch.eye(len(pairs), dtype=torch.bool)
        scores = scores.masked_fill(others, -torch.inf) / CONTRASTIVE.temperature
        loss = cross_entropy(scores, torch.arange(len(pairs)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def learn(pairs: Callable[[int], list[Pair]], seen: bool, before: Callable[[int], None] = lambda step: None):
    """Seconds and losses of `train_loop`'s steps, each after `before`; with pictures that were `seen` or
    not.
    """
    model, seconds, losses = load(NAME), [], []
    if seen:
        products = [
            product
            for step in range(CONFIG.steps)
            for pair in pairs(step)
            for product in (*pair.query.references, pair.positive)
        ]
        model.pixels((product.image, product.id) for product in products)
    learner = Learner(model, decoders(model, CONTRASTIVE), CONTRASTIVE)
    own = contrastive_objective(learner, lambda step: make_batch(model, pairs(step)))

    def objective(step: int):
        before(step)
        seconds.append(-time.perf_counter())
        return own(step)

    def ended(line) -> None:
        seconds[-1] += time.perf_counter()
        losses.append(line["contrastive"])

    with tempfile.TemporaryDirectory() as out:
        train_loop(model, objective, CONFIG, out, on_step=ended)
    with profiled("training" if seen else "training-first-epoch"):
        own(0)
    return seconds, losses


def timings() -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and losses of each step: of the plain loop and ours in turn, then of ours at new pictures."""
    pairs, plain = opened(), plain_loop()
    seconds, losses = {"plain loop": []}, {"plain loop": []}

    def step_of_plain_loop(step: int) -> None:
        started = time.perf_counter()
        losses["plain loop"].append(plain(step, pairs(step)))
        seconds["plain loop"].append(time.perf_counter() - started)

    seconds["ours"], losses["ours"] = learn(pairs, True, step_of_plain_loop)
    seconds["ours, first epoch"], losses["ours, first epoch"] = learn(pairs, False)
    return seconds, losses


if __name__ == "__main__":
    seconds, losses = timings()
    expected = losses["plain loop"]
    apart = [abs(loss - other) for name in losses for loss, other in zip(losses[name], expected, strict=True)]
    print("losses", *(f"{loss:.6f}" for loss in expected), "differ by at most", max(apart))
    assert max(apart) < 1e-4
    timed = {name: values[WARM:] for name, values in seconds.items()}
    rows = [row(f"{name}, pairs a second", [BATCH / s for s in values]) for name, values in timed.items()]
    rows.append(row("ours / plain loop", ratios(timed["plain loop"], timed["ours"]), "≥ 1.5"))
    rows.append(row(f"largest difference of a loss over {CONFIG.steps} steps", [max(apart)], "< 1e-4"))
    print(keep("training", rows).to_string(index=False))
