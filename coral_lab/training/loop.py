"""The training loop: any objective, resumable to the bit, every loss term and evaluation in one CSV.

Design: what happens at a step depends on the seed and the step's number alone, so that a killed run goes on
from its last checkpoint as if nothing had happened. An objective computes the losses of one step, adds their
gradients to the parameters, and says what they were. Only parameters that learn are kept in the state, so
LoRA's is small.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save as safetensors
from torch import Tensor, nn
from tqdm.auto import tqdm

from coral_lab.images import digest
from coral_lab.models.loading import Model
from coral_lab.models.quantizing import check_whole
from coral_lab.models.saving import save
from coral_lab.sources.files import check_no_links, fresh_file, output_folder, write_text
from coral_lab.store.fingerprints import weights
from coral_lab.training import distributed
from coral_lab.training.resuming import Log, read_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """What the losses of a step were, and the prompts they were of (written down if something goes wrong)."""

    terms: Mapping[str, float]
    batch: Sequence = ()


Objective = Callable[[int], Step]
"""Computes the losses of step number n, adds their gradients to the parameters, and returns the losses'
values.
"""


def backward(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Add the gradients of the terms' sum; returns their values."""
    torch.stack(list(terms.values())).sum().backward()
    return {name: value.item() for name, value in terms.items()}


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn. AdamW, linear warm-up, cosine decay to a tenth, gradients clipped by
    norm.

    `accumulate` steps of the objective make one step of the optimizer; `precision` "bfloat16" runs the
    network in mixed precision, its parameters stay as they were loaded.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 200
    checkpoint_every: int = 100
    accumulate: int = 1
    precision: str = "float32"

    def __post_init__(self):
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"steps is {self.steps} and learning_rate {self.learning_rate}; both must be positive"
            )
        if self.accumulate < 1 or self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"accumulate is {self.accumulate} and precision {self.precision!r}; use 1 or more, and "
                "float32 or bfloat16"
            )

    def autocast(self, device: torch.device) -> Callable:
        """A context in which the network runs in this precision."""
        if self.precision == "float32":
            return nullcontext
        return partial(torch.autocast, device.type, torch.bfloat16)


def train_loop(
    model: Model,
    objective: Objective,
    config: TrainConfig,
    out: str | Path,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    *,
    decoders: nn.Module | None = None,
    on_step: Callable[[Mapping[str, float | int]], None] | None = None,
    facts: Mapping[str, object] | None = None,
) -> Model:
    """Train `model` in place and save it in folder `out`, with `log.csv` beside it.

    `decoders` are trained along and saved as `decoders.safetensors`; inference does not need them. `on_step`
    gets each row of the log, for a live plot. `facts` are what else a step depends on, such as data and
    weights of the objective. If `out` holds a checkpoint of the same config, facts and start, goes on from
    there, and says so if it is finished. (Eight parameters: what learns, how, where, and who looks on.)
    Raises ValueError for a quantised model, or naming the first thing that is different, before anything is
    trained; FloatingPointError when a loss or gradient is no number, with what was in that batch in
    `out/failed-step.json`.
    """
    check_whole(model.network, model.name, "trained")
    out = output_folder(out)
    check_no_links(out)
    modules = {"network": model.network} | ({"decoders": decoders} if decoders is not None else {})
    optimizer = _optimizer(modules, config)
    made_with = _fingerprint(model, config, facts or {})
    state = _resume(out / "state.pt", modules, optimizer, made_with, config.steps)
    if state["step"] == config.steps:
        log.warning("%s is already finished, after %d steps; its weights stay as they are", out, config.steps)
    first = distributed.rank() == 0
    rows = Log(out / "log.csv", state["step"]) if first else None
    started = time.perf_counter() - state["seconds"]
    model.network.train()
    steps = range(state["step"], config.steps)
    for step in tqdm(steps, initial=state["step"], total=config.steps, desc=out.name, disable=not first):
        row = _step(objective, modules, optimizer, config, step, out)
        done = step + 1
        if evaluate and first and (done % config.evaluate_every == 0 or done == config.steps):
            model.network.eval()
            row |= evaluate()
            model.network.train()
        seconds = time.perf_counter() - started
        row = {"step": done, "seconds": round(seconds, 1), **row}
        if rows:
            rows.write(row)
            if on_step:
                on_step(row)
            if done % config.checkpoint_every == 0 or done == config.steps:
                _save_state(out / "state.pt", modules, optimizer, made_with, done, seconds)
        distributed.wait()
    model.network.eval()
    if rows:
        save(model, out, _facts(config, rows.rows))
        if decoders is not None:
            with fresh_file(out / "decoders.safetensors") as file:
                file.write(safetensors(decoders.state_dict()))
    distributed.wait()
    return model


def _facts(config: TrainConfig, rows: Sequence[Mapping]) -> dict[str, object]:
    """For the model card: the settings, and what the log ends with."""
    settings = {name: value for name, value in asdict(config).items() if not name.endswith("_every")}
    last = {name: value for name, value in (rows[-1] if rows else {}).items() if value != ""}
    return {
        "training": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "last step": ", ".join(f"{name} {value}" for name, value in last.items()),
    }


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate at `step` (from 0): linear up over `warmup` steps, then a cosine down to a tenth."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item()))


def _step(
    objective: Objective,
    modules: Mapping[str, nn.Module],
    optimizer,
    config: TrainConfig,
    step: int,
    out: Path,
) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    done = []
    for part in range(config.accumulate):
        number = step * config.accumulate + part
        torch.manual_seed(config.seed * 1_000_003 + number)
        done.append(objective(number))
    parameters = [parameter for _, parameter in _learning(modules)]
    distributed.sum_gradients(parameters)
    for parameter in parameters:
        if parameter.grad is not None and config.accumulate > 1:
            parameter.grad /= config.accumulate
    norm = nn.utils.clip_grad_norm_(parameters, config.clip).item()
    terms = {name: sum(s.terms[name] for s in done) / len(done) for name in done[0].terms}
    if not all(map(math.isfinite, (*terms.values(), norm))):
        _fail(done, terms, norm, step, out)
    optimizer.step()
    optimizer.zero_grad()
    return {**terms, "gradient_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}


def _fail(done: Sequence[Step], terms: Mapping[str, float], norm: float, step: int, out: Path) -> None:
    """Write down what was in the batch, and stop."""
    batch = [{"name": prompt.name, "text": prompt.text} for part in done for prompt in part.batch]
    content = {
        "step": step,
        "gradient_norm": str(norm),
        "terms": {k: str(v) for k, v in terms.items()},
        "batch": batch,
    }
    file = out / "failed-step.json"
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    raise FloatingPointError(
        f"loss at step {step} is {dict(terms)}, the gradient's norm {norm}; lower the learning rate, or "
        f"look at the batch in {file}"
    )


def _learning(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that learn, each once, with their names."""
    for prefix, module in modules.items():
        yield from ((f"{prefix}.{name}", p) for name, p in module.named_parameters() if p.requires_grad)


def _optimizer(modules: Mapping[str, nn.Module], config: TrainConfig) -> torch.optim.AdamW:
    """Matrices decay, norms and biases do not."""
    parameters = [parameter for _, parameter in _learning(modules)]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def _save_state(file: Path, modules, optimizer, made_with: dict[str, str], step: int, seconds: float) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "made_with": made_with,
        "optimizer": optimizer.state_dict(),
        "parameters": dict(_learning(modules)),
    }
    with fresh_file(file) as handle:  # a kill leaves the old state or the new one, never half of one
        torch.save(state, handle)


def _resume(file: Path, modules, optimizer, made_with: dict[str, str], steps: int) -> dict:
    if not file.is_file():
        return {"step": 0, "seconds": 0.0}
    parameters = dict(_learning(modules))
    state = read_state(file, parameters, made_with, steps)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["parameters"][name])
    groups = optimizer.state_dict()["param_groups"]  # of this config, and that is the state's too
    optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    return state


def _fingerprint(model: Model, config: TrainConfig, facts: Mapping[str, object]) -> dict[str, str]:
    """Everything that a step depends on, in the order in which differences are named."""
    learning = dict(_learning({"network": model.network}))
    known = {
        **asdict(config),
        **facts,
        "start": weights(model.network),
        "parameters": digest(sorted(learning)),
    }
    return {
        name: str(value)
        for name, value in known.items()
        if name not in ("evaluate_every", "checkpoint_every")
    }
