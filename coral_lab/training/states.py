"""The state of a training: where a killed run goes on, written whole or not at all.

A folder `state-STEP` has every learning parameter and Adam's moments as safetensors, each process's own rows
in a file of its own where parameters are sharded, and `state.json` with what else a run depends on. It is
read by any number of processes. A training folder may come from somebody else: no code in it is run, nothing
is read before its size is known, and what does not fit the run is refused.
"""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch import distributed as torch_distributed
from torch.distributed import checkpoint
from torch.distributed.tensor import DTensor

from coral_lab.errors import one_line
from coral_lab.sources.files import check_no_links, write_text
from coral_lab.training import distributed

Tensors = Mapping[str, Tensor]

SLACK, EACH = 2**22, 2**12
"""Bytes that a state may have beside the tensors' own: in all, and for each tensor's name and place."""

LONGEST = 2**20  # bytes of state.json


@dataclass(frozen=True)
class Progress:
    """How far a run has come: steps done, seconds taken, the settings and data it was `made_with`, and the
    step and value of its best evaluation, (0, -inf) before the first.
    """

    step: int
    seconds: float
    made_with: Mapping[str, str]
    best: tuple[int, float] = (0, -math.inf)


def newest(out: Path) -> Path | None:
    """The last state that was written whole, if there is one.

    Raises ValueError for a state of an earlier version.
    """
    if (old := out / "state.pt").exists():
        raise _refused(old, "is of a version of coral_lab before 0.3, which this one cannot go on from")
    return max(out.glob("state-[0-9]*"), default=None)


def read_progress(folder: Path, made_with: Mapping[str, str], steps: int) -> Progress:
    """What `state.json` says. Raises ValueError naming the first thing that differs from this run."""
    _check_files(folder)
    file = folder / "state.json"
    try:
        if file.stat().st_size > LONGEST:
            raise ValueError(f"it has more than {LONGEST:,} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(file, f"cannot be read ({one_line(str(error), 80)})") from None
    if not isinstance(found, dict) or found.keys() != {"step", "seconds", "made_with", "best"}:
        raise _refused(file, "is no training state")
    then = found["made_with"]
    if not isinstance(then, dict) or not all(type(text) is str for text in then.values()):
        raise _refused(file, "does not say what it was made with")
    for name in dict.fromkeys([*made_with, *then]):
        if then.get(name) != made_with.get(name):
            said = f"{name} {str(then.get(name))[:60]}, and now it is {str(made_with.get(name))[:60]}"
            raise _refused(file, f"was made with {said}")
    step, seconds, best = found["step"], found["seconds"], found["best"]
    if type(step) is not int or not 0 <= step <= steps:
        raise _refused(file, f"is of step {str(step)[:40]}, and this run has {steps}")
    if type(seconds) is not float or not math.isfinite(seconds) or seconds < 0:
        raise _refused(file, f"is of {str(seconds)[:40]} seconds, which cannot be")
    if best is not None and not (
        isinstance(best, list)
        and list(map(type, best)) == [int, float]
        and 0 < best[0] <= step
        and math.isfinite(best[1])
    ):
        raise _refused(file, f"has {str(best)[:40]} for its best step and what that reached")
    return Progress(step, seconds, made_with, (best[0], best[1]) if best else (0, -math.inf))


def write_progress(folder: Path, progress: Progress) -> None:
    step, value = progress.best
    content = {
        "step": progress.step,
        "seconds": progress.seconds,
        "made_with": dict(progress.made_with),
        "best": [step, value] if step else None,
    }
    write_text(folder / "state.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write(folder: Path, tensors: Tensors, finish: Callable[[Path], None] = lambda folder: None) -> None:
    """Write tensors into a new folder, which is there whole or not at all; `finish` writes what else belongs
    to it. All processes call it, and each has the error of any.

    Raises OSError naming what stays as it was.
    """
    part, first = folder.with_name(f".{folder.name}.part"), distributed.rank() == 0

    def begin() -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()

    def end() -> None:
        finish(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)

    problem = _agreed(begin if first else None) or _agreed(lambda: _save(part, tensors))
    problem = problem or _agreed(end if first else None)
    if problem:
        if first:
            shutil.rmtree(part, ignore_errors=True)
        kept = max(folder.parent.glob("state-[0-9]*"), default=None)
        stays = f"{kept.name} stays" if kept else "there is none before it"
        raise OSError(one_line(f"{folder} could not be written ({problem}); {stays}: mend that, start again"))


def _agreed(action: Callable[[], None] | None) -> str:
    """The first problem that an action ran into on any process, "" for none."""
    problem = ""
    try:
        if action is not None:
            action()
    except (Exception, checkpoint.CheckpointException) as error:
        problem = _said(error)
    return next(filter(None, distributed.gather_objects(problem)), "")


def _said(error: BaseException) -> str:
    """The cause behind torch's report of what failed where."""
    if isinstance(error, checkpoint.CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return one_line(str(error) or type(error).__name__, 160)


def _save(folder: Path, tensors: Tensors) -> None:
    alone = not _are_sharded(tensors)
    if alone and distributed.rank() > 0:
        return
    writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _quiet():
        checkpoint.save(dict(tensors), storage_writer=writer, no_dist=alone)


def read(folder: Path, tensors: Tensors) -> None:
    """Fill the tensors from a folder. Raises ValueError, before anything is filled, unless it has exactly
    these.
    """
    check(folder, tensors)
    reader = checkpoint.HuggingFaceStorageReader(str(folder))
    try:
        with _quiet():
            checkpoint.load(dict(tensors), storage_reader=reader, no_dist=not _are_sharded(tensors))
    except (Exception, checkpoint.CheckpointException) as error:
        raise _refused(folder, f"cannot be read ({_said(error)})") from None


def check(folder: Path, tensors: Tensors) -> None:
    """Raises ValueError, naming the first thing that differs, unless a folder has exactly these tensors."""
    _check_files(folder)
    files = sorted(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    most = SLACK + sum(t.numel() * t.element_size() + EACH for t in tensors.values())
    if size > most:
        raise _refused(folder, f"has {size:,} bytes, and a state of this model {most:,} at most")
    try:
        found = checkpoint.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # whatever torch and json run into
        raise _refused(folder, f"cannot be read ({one_line(str(error), 80)})") from None
    if found.keys() != tensors.keys():
        other = sorted(found.keys() ^ tensors.keys())[0]
        whose = "is not this model's" if other in found else "is missing"
        raise _refused(folder, f"has other parameters ({other[:80]} {whose})")
    for name, tensor in tensors.items():
        own: Any = found[name]
        if tuple(own.size) != tuple(tensor.shape) or own.properties.dtype != tensor.dtype:
            kinds = [
                f"{list(size)} {str(dtype)[6:]}"
                for size, dtype in ((own.size, own.properties.dtype), (tensor.shape, tensor.dtype))
            ]
            raise _refused(folder, f"has {name} as {kinds[0]}, and the model as {kinds[1]}")
        if not _has_all_rows(own.chunks, tuple(tensor.shape)):
            raise _refused(folder, f"has a part of {name} only")


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise _refused(folder, "is no folder, and a state is one")
    check_no_links(folder)
    for file in folder.iterdir():  # a pipe would be waited for
        if not file.is_file():
            raise _refused(file, "is no regular file")


def _has_all_rows(chunks: Sequence[Any], shape: tuple[int, ...]) -> bool:
    """Whether parts follow one upon the other, as FSDP2 cuts tensors, by rows: none is read twice, or not."""
    if not shape:
        return len(chunks) == 1
    end = 0
    for chunk in sorted((chunk for chunk in chunks if math.prod(chunk.sizes)), key=lambda c: c.offsets):
        if (*chunk.offsets, *chunk.sizes[1:]) != (end, *(0 for _ in shape[1:]), *shape[1:]):
            return False
        end += chunk.sizes[0]
    return end == shape[0] or not math.prod(shape)


def _are_sharded(tensors: Tensors) -> bool:
    return torch_distributed.is_initialized() and any(isinstance(t, DTensor) for t in tensors.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """torch notes that it works in a single process, which is no news."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        yield


def _refused(file: Path, problem: str) -> ValueError:
    return ValueError(one_line(f"{file} {problem}; choose another folder"))
