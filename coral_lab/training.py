"""The training loop: any objective, resumable to the bit, every loss term and evaluation in one CSV.

Design: what happens at a step depends on the seed and the step's number alone, so that a killed run goes on from its
last checkpoint as if nothing had happened. An objective is a function `step -> {term: loss}`; the terms are summed.
"""

import csv
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from coral_lab.models import Model, save

Objective = Callable[[int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn. AdamW, linear warm-up, cosine decay to a tenth, gradients clipped by norm."""

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 200
    checkpoint_every: int = 100

    def __post_init__(self):
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"steps is {self.steps} and learning_rate {self.learning_rate}; both must be positive"
            )


def train(
    model: Model,
    objective: Objective,
    config: TrainConfig,
    out: str | Path,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
) -> Model:
    """Train `model` in place and save it in folder `out`, with `log.csv` beside it.

    If `out` holds a checkpoint of the same config, goes on from there. Raises ValueError for a checkpoint of
    another config, FloatingPointError when the loss is no number.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    optimizer = _optimizer(model.network, config)
    state = _resume(out / "state.pt", model, optimizer, config)
    log = Log(out / "log.csv", state["step"])
    started = time.perf_counter() - state["seconds"]
    model.network.train()
    for step in tqdm(
        range(state["step"], config.steps), initial=state["step"], total=config.steps, desc=out.name
    ):
        row = _step(model, objective, optimizer, config, step)
        done = step + 1
        if evaluate and (done % config.evaluate_every == 0 or done == config.steps):
            model.network.eval()
            row |= evaluate()
            model.network.train()
        seconds = time.perf_counter() - started
        log.write({"step": done, "seconds": round(seconds, 1), **row})
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save_state(out / "state.pt", model, optimizer, config, done, seconds)
    model.network.eval()
    save(model, out)
    return model


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate at `step` (from 0): linear up over `warmup` steps, then a cosine down to a tenth."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item()))


def _step(model: Model, objective: Objective, optimizer, config: TrainConfig, step: int) -> dict[str, float]:
    torch.manual_seed(config.seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    terms = objective(step)
    total = sum(terms.values())
    if not torch.isfinite(total):
        named = {name: value.item() for name, value in terms.items()}
        raise FloatingPointError(
            f"loss at step {step} is {named}; lower the learning rate, or look at this batch"
        )
    total.backward()
    norm = nn.utils.clip_grad_norm_(model.network.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad()
    rate = optimizer.param_groups[0]["lr"]
    return {name: value.item() for name, value in terms.items()} | {
        "gradient_norm": norm.item(),
        "learning_rate": rate,
    }


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Matrices decay, norms and biases do not."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def _save_state(file: Path, model: Model, optimizer, config: TrainConfig, step: int, seconds: float) -> None:
    state = {"step": step, "seconds": seconds, "config": asdict(config), "network": model.network.state_dict(),
             "optimizer": optimizer.state_dict()}  # fmt: skip
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(
        file.with_suffix(".tmp"), file
    )  # a kill leaves the old state or the new one, never half of one


def _resume(file: Path, model: Model, optimizer, config: TrainConfig) -> dict:
    if not file.is_file():
        return {"step": 0, "seconds": 0.0}
    state = torch.load(file, weights_only=True)
    if state["config"] != asdict(config):
        raise ValueError(
            f"{file} was made with {state['config']}, not {asdict(config)}; choose another folder"
        )
    model.network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return state


class Log:
    """A CSV of one row a step; columns may appear later, rows after the resumed step are dropped."""

    def __init__(self, file: Path, step: int):
        self.file, self.rows = file, []
        if file.is_file() and step:
            with file.open(newline="") as handle:
                self.rows = [row for row in csv.DictReader(handle) if int(row["step"]) <= step]
        self.columns = list(self.rows[0]) if self.rows else []
        self._rewrite()

    def write(self, row: Mapping[str, float | int]) -> None:
        row = {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            return self._rewrite()
        with self.file.open("a", newline="") as handle:
            csv.DictWriter(handle, self.columns).writerow(row)

    def _rewrite(self) -> None:
        with self.file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
