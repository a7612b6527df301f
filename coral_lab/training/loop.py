"""The training loop: any objective, resumable to the bit, every loss term and evaluation in one CSV.

Design: what happens at a step depends on the seed and the step's number alone, so that a killed run goes on
from its last state as if nothing had happened. An objective computes the losses of one step, adds their
gradients to the parameters, and says what they were. Only parameters that learn are kept in the state, so
LoRA's is small.
"""

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from coral_lab.images import digest
from coral_lab.models.fingerprints import weights
from coral_lab.models.model import Model
from coral_lab.models.quantizing import check_whole
from coral_lab.models.saving import save
from coral_lab.sources.files import check_no_links, fresh_file, output_folder, write_text
from coral_lab.training import distributed, states
from coral_lab.training.config import TrainConfig, learning_rate
from coral_lab.training.following import Log, memory, tracker
from coral_lab.training.states import Progress

log = logging.getLogger(__name__)

FOLLOWED = "MRR@10"
"""The measure by which training is stopped early: less noisy than R@1 on few queries."""

MEASURES = ("R@", "MRR@", "nDCG@")
"""What the names of results begin with; the rest of a row are losses and what the machine did."""

TERMINATED = 143
"""Exit status of a run that was told to end, as a shell has it for SIGTERM."""


@dataclass(frozen=True)
class Step:
    """What the losses of a step were, the prompts they were of (written down if something goes wrong), and
    how many pairs these were.
    """

    terms: Mapping[str, float]
    batch: Sequence = ()
    pairs: int = 0


Objective = Callable[[int], Step]
"""Computes the losses of step number n, adds their gradients to the parameters, and returns the losses'
values.
"""


def backward(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Add the gradients of the terms' sum; returns their values."""
    torch.stack(list(terms.values())).sum().backward()
    return {name: value.item() for name, value in terms.items()}


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
    card: Mapping[str, object] | None = None,
) -> Model:
    """Train `model` in place and save it in folder `out`, with `log.csv` beside it.

    `decoders` are trained along and saved as `decoders.safetensors`; inference does not need them. `on_step`
    gets each row of the log, for a live plot. `facts` are what else a step depends on, such as data, weights
    of the objective, and "start", the fingerprint of the first weights, worked out if it is not among them;
    `card` is what the model card says besides. If `out` holds a state of the same config, facts and start,
    goes on from there, and says so if it is finished. SIGTERM ends it after a step, with its state written.
    (Nine parameters: what learns, how, where, and who looks on.)

    Raises ValueError for a quantised model, one that learns in less than float32, or naming the first thing
    that is different, before anything is trained; FloatingPointError when a loss or gradient is no number,
    with what was in that batch in `out/failed-step.json`; OSError if a state cannot be written, with the last
    one as it was; ProcessError if another process ended.
    """
    check_whole(model.network, model.name, "trained")
    if not config.steps:
        raise ValueError("the loop counts steps, and the config has epochs; see TrainConfig.lasting")
    if config.decoders_first and decoders is None:
        raise ValueError(
            f"decoders_first is {config.decoders_first}, and there are no decoders; leave it out"
        )
    if config.patience and evaluate is None:
        raise ValueError(f"patience is {config.patience}, and nothing is evaluated; hold queries out")
    out = output_folder(out)
    check_no_links(out)
    modules = {"network": model.network} | ({"decoders": decoders} if decoders is not None else {})
    optimizer = _optimizer(modules, config)
    made_with = _fingerprint(model, config, facts or {})
    progress = _resume(out, modules, optimizer, made_with, config.all_steps)
    finished = _is_finished(progress, config)
    if finished:
        log.warning(
            "%s is already finished, after %d steps; its weights stay as they are", out, progress.step
        )
    first = distributed.rank() == 0
    rows = Log(out / "log.csv", progress.step) if first else None
    started = time.perf_counter() - progress.seconds
    model.network.train()
    steps = range(progress.step, progress.step if finished else config.all_steps)
    bar = tqdm(steps, initial=progress.step, total=config.all_steps, desc=out.name, disable=not first)
    with distributed.one_error(), _told_to_end() as told, tracker(config.tracker, out, made_with) as track:
        for step in bar:
            row = _step(objective, modules, optimizer, config, step, out)
            done = step + 1
            if evaluate and _is_evaluated(done - config.decoders_first, config):
                model.network.eval()
                row |= evaluate()
                model.network.train()
                if config.patience and FOLLOWED not in row:
                    raise ValueError(f"patience follows {FOLLOWED}, and what evaluates does not say it")
                if config.patience and row[FOLLOWED] > progress.best[1]:
                    progress = replace(progress, best=(done, row[FOLLOWED]))
                    states.write(out / f"best-{done:08d}", _parameters(modules))
            progress = replace(progress, step=done, seconds=time.perf_counter() - started)
            row = {"step": done, "seconds": round(progress.seconds, 1), **row}
            if rows:
                rows.write(row)
                track(row)
                bar.set_postfix({k: f"{row[k]:.3g}" for k in ("contrastive", "R@1") if k in row})
                if on_step:
                    on_step(row)
            ends = distributed.total([float(told())], model.device)[0] > 0
            finished = _is_finished(progress, config)
            if ends or finished or done % config.checkpoint_every == 0 or done == progress.best[0]:
                _save_state(out, modules, optimizer, progress)
            if finished:
                break
            if ends:
                log.warning("%s was told to end after step %d; the same again goes on", out, done)
                raise SystemExit(TERMINATED)
    model.network.eval()
    if config.patience and progress.best[0] not in (0, progress.step):
        states.read(out / f"best-{progress.best[0]:08d}", _parameters(modules))
    _save(model, decoders, out, _facts(config, rows.rows if rows else [], progress) | dict(card or {}))
    return model


def _is_evaluated(learnt: int, config: TrainConfig) -> bool:
    """Whether there is an evaluation after so many steps of the network."""
    return learnt > 0 and (learnt % config.evaluate_every == 0 or learnt == config.steps)


def _is_finished(progress: Progress, config: TrainConfig) -> bool:
    """Whether all steps are done, or as many evaluations as `patience` says came after the best one."""
    best, first = progress.best[0], config.decoders_first
    since = (progress.step - first) // config.evaluate_every - (best - first) // config.evaluate_every
    return progress.step == config.all_steps or bool(config.patience and best and since >= config.patience)


@contextmanager
def _told_to_end() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came, which ends nothing meanwhile. Only a main thread is told."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        if before is not None:  # python cannot put back what others set
            signal.signal(signal.SIGTERM, before)


def _save(model: Model, decoders: nn.Module | None, out: Path, facts: Mapping[str, object]) -> None:
    """The checkpoint and the decoders, by the first process."""
    sharded = any(isinstance(parameter, DTensor) for parameter in model.network.parameters())
    whole = distributed.whole(model.network) if sharded else None
    heads = distributed.whole(decoders) if decoders is not None else {}
    if distributed.rank() == 0:
        save(model, out, facts, whole)
        if decoders is not None:
            with fresh_file(out / "decoders.safetensors") as file:
                file.write(safetensors(heads))
    distributed.wait()


def _facts(config: TrainConfig, rows: Sequence[Mapping], progress: Progress) -> dict[str, object]:
    """For the model card: the settings, and the row of the log that its weights are of."""
    unsaid = ("evaluate_every", "checkpoint_every", "tracker")
    settings = {
        name: value
        for name, value in asdict(config).items()
        if value not in (None, False) or name == "seed"
        if name not in unsaid
    }
    step, which = (progress.best[0], "best") if progress.best[0] else (progress.step, "last")
    row: Mapping = next((own for own in reversed(rows) if int(own["step"]) == step), {})
    last = {name: value for name, value in row.items() if value != ""}
    results = {name: value for name, value in last.items() if name.startswith(MEASURES)}
    facts: dict[str, object] = {
        "training": ", ".join(f"{name} {value}" for name, value in settings.items()),
        f"{which} step": ", ".join(f"{name} {value}" for name, value in last.items() if name not in results),
    }
    if results:
        facts["results"] = ", ".join(f"{name} {value}" for name, value in results.items())
    return facts


def _step(
    objective: Objective,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
    out: Path,
) -> dict[str, float]:
    began, alone = time.perf_counter(), step < config.decoders_first
    for group in optimizer.param_groups:
        rests = alone and group["module"] == "network"
        group["lr"] = 0.0 if rests else learning_rate(step, config) * group["share"]
    done = []
    for part in range(config.accumulate):
        number = step * config.accumulate + part
        torch.manual_seed(config.seed * 1_000_003 + number)
        done.append(objective(number))
    if alone:  # without a gradient a parameter has no weight decay and no moments either
        modules["network"].zero_grad()
    learning = {name: own for name, own in modules.items() if name != "network" or not alone}
    parameters = list(_parameters(learning).values())
    distributed.sum_gradients(parameters)
    for parameter in parameters:
        if parameter.grad is not None and config.accumulate > 1:
            parameter.grad /= config.accumulate
    norm = _clip(parameters, config.clip)
    said: dict[str, list[float]] = {}  # some are not said by every part
    for name, value in (pair for part in done for pair in part.terms.items()):
        said.setdefault(name, []).append(value)
    terms = {name: sum(values) / len(values) for name, values in said.items()}
    if not all(map(math.isfinite, (*terms.values(), norm))):
        _fail(done, terms, norm, step, out)
    optimizer.step()
    optimizer.zero_grad()
    pairs, seconds = sum(s.pairs for s in done), time.perf_counter() - began
    told = {"pairs_per_second": pairs / seconds} if pairs else {}
    device = parameters[0].device
    rate = optimizer.param_groups[0]["lr"]
    return {**terms, "gradient_norm": norm, "learning_rate": rate, **told, "memory_gb": memory(device)}


def _clip(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Scale all gradients to a common norm of `most` at most; returns what it was. Sharded ones and others
    cannot be summed in one call.
    """
    norms = [
        torch.linalg.vector_norm(parameter.grad).float()
        for parameter in parameters
        if parameter.grad is not None
    ]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack(whole))
    nn.utils.clip_grads_with_norm_(parameters, most, total)
    return total.item()


def _fail(done: Sequence[Step], terms: Mapping[str, float], norm: float, step: int, out: Path) -> None:
    """Write down what was in the batch, and stop."""
    own = [{"name": prompt.name, "text": prompt.text} for part in done for prompt in part.batch]
    batches = distributed.gather_objects(own)
    content = {
        "step": step,
        "gradient_norm": str(norm),
        "terms": {k: str(v) for k, v in terms.items()},
        "batch": [item for batch in batches for item in batch] if batches[0] != batches[-1] else batches[0],
    }
    file = out / "failed-step.json"
    if distributed.rank() == 0:
        write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    raise FloatingPointError(
        f"loss at step {step} is {dict(terms)}, the gradient's norm {norm}; lower the learning rate, or "
        f"look at the batch in {file}"
    )


def _parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters that learn, each once, with their names."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _optimizer(modules: Mapping[str, nn.Module], config: TrainConfig) -> torch.optim.AdamW:
    """Matrices decay, norms and biases do not. Its moments are there from the beginning, for states to be
    read into. Raises ValueError for parameters that would lose small changes by rounding.
    """
    parameters = _parameters(modules)
    if not parameters:
        raise ValueError("nothing learns: all parameters are frozen; let some of them, or add adapters")
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} would learn in {str(parameter.dtype)[6:]}, where small changes are lost; load the "
                "model with dtype='float32' (precision='bfloat16' computes in it), or add adapters"
            )
    rates = {
        "network": config.learning_rate,
        "decoders": config.decoder_learning_rate or config.learning_rate,
    }
    groups = [
        {
            "params": [
                p for name, p in parameters.items() if name.startswith(part) and (p.ndim > 1) == decays
            ],
            "weight_decay": config.weight_decay if decays else 0.0,
            "share": rates[part] / config.learning_rate,  # of the network's rate, at every step
            "module": part,
        }
        for part in modules
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _tensors(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that a state keeps: parameters, and Adam's moments of each."""
    found: dict[str, Any] = {}
    moments = dict(optimizer.state)  # which has none for what it does not know, and says so
    for name, parameter in _parameters(modules).items():
        found[name] = parameter
        found |= {f"{name}.{kind}": moment for kind, moment in moments[parameter].items()}
    return found


def _save_state(out: Path, modules, optimizer, progress: Progress) -> None:
    """Write the state of a step; what stood before it is taken away when it is there."""
    folder = out / f"state-{progress.step:08d}"
    states.write(folder, _tensors(modules, optimizer), lambda part: states.write_progress(part, progress))
    if distributed.rank() == 0:
        kept = {folder.name, f"best-{progress.best[0]:08d}"}
        begun = [*out.glob(".state-[0-9]*.part"), *out.glob(".best-[0-9]*.part")]  # and never ended
        for old in [*out.glob("state-[0-9]*"), *out.glob("best-[0-9]*"), *begun]:
            if old.name not in kept and old.is_dir():
                shutil.rmtree(old)


def _resume(out: Path, modules, optimizer, made_with: dict[str, str], steps: int) -> Progress:
    folder = states.newest(out)
    if folder is None:
        return Progress(0, 0.0, made_with)
    progress = states.read_progress(folder, made_with, steps)
    if progress.best[0]:
        states.check(out / f"best-{progress.best[0]:08d}", _parameters(modules))
    states.read(folder, _tensors(modules, optimizer))
    return progress


UNASKED = ("evaluate_every", "checkpoint_every", "shard", "tracker")
"""Settings that no step depends on; patience, when to evaluate."""


def _fingerprint(model: Model, config: TrainConfig, facts: Mapping[str, object]) -> dict[str, str]:
    """Everything that a step depends on, in the order in which differences are named."""
    learning = _parameters({"network": model.network})
    known = {**asdict(config), **facts, "parameters": digest(sorted(learning))}
    if not config.decoders_first:
        del known["decoders_first"]  # states that were written before there was such a setting go on
    if "start" not in known:
        known["start"] = weights(model.network)
    if config.patience:
        known["patience"] = f"{config.patience}, asked every {config.evaluate_every} steps"
    return {name: str(value) for name, value in known.items() if name not in UNASKED}
