"""One training step in each mode that there is: at the small size beside the CPU, and at the size asked
for.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import torch

from coral_lab.models.loading import load_network
from coral_lab.models.model import Model
from coral_lab.replication.device_bench import (
    Bench,
    Figure,
    free,
    memory,
    peak,
    products,
    query_over,
    room,
    timed,
)
from coral_lab.training.batches import Pair, make_batch
from coral_lab.training.config import TrainConfig
from coral_lab.training.contrastive import gradients
from coral_lab.training.learner import Learner
from coral_lab.training.lora import add_lora
from coral_lab.training.reconstruction import CONTRASTIVE, CORAL, Coral, decoders

BYTES = {"all": 20, "lora": 4}
"""What a parameter of float32 takes: itself, its gradient, AdamW's two means and its sums on the way; or,
frozen, itself alone.
"""

ASIDE = 8e9
"""Bytes for what the layers keep of two pairs, decoders and adapters."""


@dataclass(frozen=True)
class Mode:
    """One way to train: the objective, pairs in memory at a time, what learns, and the precision."""

    name: str
    coral: Coral
    chunk: int | None = None
    lora: bool = False
    precision: str = "float32"


MODES = (
    Mode("contrastive", CONTRASTIVE),
    Mode("Coral", CORAL),
    Mode("Coral, GradCache", CORAL, chunk=1),
    Mode("Coral, LoRA", CORAL, lora=True),
    Mode("Coral, bfloat16 autocast", CORAL, precision="bfloat16"),
    Mode("contrastive, GradCache, LoRA, bfloat16 autocast", CONTRASTIVE, 1, True, "bfloat16"),
)


def first_losses(bench: Bench) -> Iterator[Figure]:
    """The losses of a first step at the small size, beside the CPU's in float32, relative to them."""
    precise = {mode: replace(mode, precision="float32") for mode in MODES}
    for mode in MODES:
        name = f"small, {mode.name}: loss beside the CPU's"
        if left_out := _lacks(mode):
            yield Figure(name, None, why=left_out)
            continue
        found = _step(bench.load(bench.small, "float32"), mode, 2)
        plain = load_network(bench.small, device="cpu", dtype="float32", attention="sdpa")
        expected = _step(plain, precise[mode], 2)
        apart = max(abs(found[term] - value) / abs(value) for term, value in expected.items())
        bound = 1e-4 if mode.precision == "float32" else 0.1
        yield Figure(name, apart, "relative", below=bound, why=_told(found))
        free(bench.device)


def training_steps(bench: Bench) -> Iterator[Figure]:
    """Seconds and peak memory of one step with two pairs, at a depth that fits in memory."""
    if not bench.is_large:
        yield Figure("training steps", None, why="only with size 3b; small ones were made for their losses")
        return
    for mode in MODES:
        name = f"{bench.size}, {mode.name}"
        if left_out := _lacks(mode):
            yield Figure(f"{name}: a step", None, why=left_out)
            continue
        free(bench.device)
        try:
            figures = list(_measured(bench, mode, name))
        except Exception as error:  # one mode's fault is not the others'
            figures = [Figure(f"{name}: a step", math.nan, "s", why=f"{type(error).__name__}: {error}")]
        yield from figures


def _lacks(mode: Mode) -> str:
    return "peft is not installed" if mode.lora and find_spec("peft") is None else ""


def _measured(bench: Bench, mode: Mode, name: str) -> Iterator[Figure]:
    model = bench.load(bench.main, "float32")
    whole = len(model.network.model.language_model.layers)
    count = _layers_that_fit(bench, model, mode) if bench.is_large else whole
    if count < 1:
        yield Figure(
            f"{name}: a step", None, why="not even one layer fits in memory, or nobody says what does"
        )
        return
    _cut(model, count)
    seconds, terms = timed(bench.device, partial(_step, model, mode, 2))
    yield Figure(f"{name}: a step", seconds, "s", why=f"2 pairs, {count} of {whole} layers; {_told(terms)}")
    yield memory(f"{name}: peak", peak(bench.device))
    yield Figure(f"{name}: losses are finite", float(all(map(math.isfinite, terms.values()))), at_least=1)


def _layers_that_fit(bench: Bench, model: Model, mode: Mode) -> int:
    """Of the text model, loaded in float32: what learns takes several times as much."""
    network = model.network
    layers = network.model.language_model.layers
    parameters = sum(p.numel() for p in network.parameters())
    one = sum(p.numel() for p in layers[0].parameters())
    free(bench.device)
    space, each = room(bench.device), BYTES["lora" if mode.lora else "all"]
    if space is None:
        return 0
    fits = (space + 4 * parameters - ASIDE) / each  # in parameters; those loaded are there already
    return min(len(layers), math.floor((fits - (parameters - len(layers) * one)) / one))


def _cut(model: Model, count: int) -> None:
    """Leave the text model its first layers."""
    text = model.network.model.language_model
    text.layers = text.layers[:count]
    text.config.num_hidden_layers = count
    text.config.layer_types = text.config.layer_types[:count]


def _step(model: Model, mode: Mode, pairs: int) -> dict[str, float]:
    """A step as `train_loop` does it, with the optimizer's; returns the losses. They depend on no device."""
    if mode.lora:
        add_lora(model)
    heads = decoders(model, mode.coral)
    shown = products(pairs)
    batch = [Pair(query_over(shown, i), shown[i]) for i in range(pairs)]
    autocast = TrainConfig(steps=1, precision=mode.precision).autocast(model.device)
    learner = Learner(model, heads, mode.coral)
    modules = (model.network, heads)
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5)
    model.network.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # what is hidden is drawn on the CPU
        made = make_batch(model, batch, heads.longest)
        terms = gradients(learner, made, mode.chunk, autocast)
        del terms["padding"]  # no loss, and nothing to compare
    terms["gradient norm"] = torch.nn.utils.clip_grad_norm_(learning, 1.0).item()
    optimizer.step()
    optimizer.zero_grad()
    return terms


def _told(terms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
