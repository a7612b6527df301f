"""What a killed run left: its state and its log, looked through before they are gone on from.

A training folder may come from somebody else. A state's size is known before it is read, no code in it is
run, and what does not fit the run is refused.
"""

import csv
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from struct import unpack
from typing import Any

import torch
from torch import Tensor

from coral_lab.errors import one_line
from coral_lab.sources.files import append_text, cell, cell_text, check_target, write_text

MOMENTS = ("exp_avg", "exp_avg_sq")
SLACK, EACH = 2**22, 2**12
"""Bytes that a state may have beside the tensors' own: in all, and for each parameter's name and place."""

LONGEST_LOG = 2**28  # bytes


def read_state(
    file: Path, parameters: Mapping[str, Tensor], made_with: Mapping[str, str], steps: int
) -> dict[str, Any]:
    """A state of these parameters and settings, at most at step number `steps`.

    Raises ValueError naming the first thing that is different or no state at all.
    """
    _check_archive(file, parameters)
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever torch and pickle run into
        raise _refused(file, f"cannot be read ({one_line(str(error), 80)})") from None
    keys = {"step", "seconds", "made_with", "optimizer", "parameters"}
    if not isinstance(state, dict) or state.keys() != keys:
        raise _refused(file, "is no training state")
    _check_settings(file, state["made_with"], made_with)
    step, seconds = state["step"], state["seconds"]
    if type(step) is not int or not 0 <= step <= steps:
        raise _refused(file, f"is of step {_said(step)}, and this run has {steps}")
    if type(seconds) is not float or not math.isfinite(seconds) or seconds < 0:
        raise _refused(file, f"is of {_said(seconds)} seconds, which cannot be")
    own = state["parameters"]
    if not isinstance(own, dict) or own.keys() != parameters.keys():
        raise _refused(file, "has other parameters")
    for name, parameter in parameters.items():
        _check_tensor(file, name, own[name], parameter)
    _check_optimizer(file, state["optimizer"], list(parameters.items()), step)
    return state


def _check_archive(file: Path, parameters: Mapping[str, Tensor]) -> None:
    """Its size when it is read, told from the archive's directory: nothing is packed, and no second directory
    hides behind the one that is looked at.
    """
    check_target(file)
    size = file.stat().st_size
    most = SLACK + sum(3 * p.numel() * p.element_size() + EACH for p in parameters.values())
    if size > most:
        raise _refused(file, f"has {size:,} bytes, and a state of this model {most:,} at most")
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as handle:
            members, start = archive.infolist(), archive.start_dir
            handle.seek(-98, io.SEEK_END)
            end = handle.read()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _refused(file, f"is no state that torch wrote ({one_line(str(error), 80)})") from None
    length, place = unpack("<QQ", end[40:56])
    marks = end[:4] + end[56:60] + end[76:80]
    if marks != b"PK\6\6PK\6\7PK\5\6" or place != start or place + length != size - 98:
        raise _refused(file, "is no state that torch wrote (its directory is elsewhere)")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _refused(file, "is compressed, and states are not")
    whole = sum(member.file_size for member in members)
    if whole > most:
        raise _refused(file, f"takes {whole:,} bytes when read, and a state of this model {most:,} at most")


def _check_settings(file: Path, then: object, now: Mapping[str, str]) -> None:
    if not isinstance(then, dict) or not all(type(text) is str for pair in then.items() for text in pair):
        raise _refused(file, "does not say what it was made with")
    for name in dict.fromkeys([*now, *then]):
        if then.get(name) != now.get(name):
            said = f"{name} {str(then.get(name))[:60]}, and now it is {str(now.get(name))[:60]}"
            raise _refused(file, f"was made with {said}")


def _check_optimizer(file: Path, own: object, parameters: list[tuple[str, Tensor]], step: int) -> None:
    """Adam's moments, of the parameters in the optimizer's order: matrices, then the others."""
    known = own.get("state") if isinstance(own, dict) else None
    ordered = [pair for pair in parameters if pair[1].ndim > 1] + [p for p in parameters if p[1].ndim <= 1]
    if not isinstance(known, dict) or not all(type(i) is int and 0 <= i < len(ordered) for i in known):
        raise _refused(file, "has an optimizer of other parameters")
    for i, found in known.items():
        name, parameter = ordered[i]
        if not isinstance(found, dict) or found.keys() != {"step", *MOMENTS}:
            raise _refused(file, f"lacks Adam's moments of {name}")
        for moment in MOMENTS:
            _check_tensor(file, f"{moment} of {name}", found[moment], parameter)
        _check_tensor(file, f"the step of {name}", found["step"], torch.tensor(0.0))
        if not 0 <= found["step"].item() <= step:
            raise _refused(file, f"has step {found['step'].item():g} of {name}, and is of step {step}")


def _check_tensor(file: Path, name: str, found: object, wanted: Tensor) -> None:
    if not isinstance(found, Tensor):
        raise _refused(file, f"has {_said(found)} for {name}")
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        kinds = [f"{list(tensor.shape)} {str(tensor.dtype)[6:]}" for tensor in (found, wanted)]
        raise _refused(file, f"has {name} as {kinds[0]}, and the model as {kinds[1]}")
    if found.layout != torch.strided or found.device.type != "cpu" or not found.is_contiguous():
        raise _refused(file, f"has {name} in a layout of its own")


def _said(value: object) -> str:
    return repr(value)[:40] if isinstance(value, int | float | str) else f"a {type(value).__name__}"


def _refused(file: Path, problem: str) -> ValueError:
    return ValueError(one_line(f"{file} {problem}; choose another folder"))


class Log:
    """A CSV of one row a step; columns may appear later, rows after the resumed step are dropped.

    Raises ValueError for a file that is no such log.
    """

    def __init__(self, file: Path, step: int):
        self.file = file
        self.rows: list[Mapping[str, Any]] = _rows(file, step) if step and file.is_file() else []
        self.columns = list(self.rows[0]) if self.rows else []
        self._rewrite()

    def write(self, row: Mapping[str, float | int]) -> None:
        said = {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()}
        self.rows.append(said)
        new = [name for name in said if name not in self.columns]
        if new:
            self.columns += new
            return self._rewrite()
        append_text(self.file, self._lines([said]))

    def _rewrite(self) -> None:
        write_text(self.file, self._lines([dict(zip(self.columns, self.columns, strict=True)), *self.rows]))

    def _lines(self, rows: list[Mapping[str, Any]]) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerows([cell(row.get(name, "")) for name in self.columns] for row in rows)
        return text.getvalue()


def _rows(file: Path, step: int) -> list[Mapping[str, Any]]:
    check_target(file)
    try:
        if file.stat().st_size > LONGEST_LOG:
            raise ValueError(f"it has more than {LONGEST_LOG:,} bytes")
        text = file.read_bytes().decode("utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        lines = csv.reader(io.StringIO(whole, newline=""))
        names = [str(cell_text(name)) for name in next(lines, [])]
        return [
            dict(zip(names, map(cell_text, line), strict=True))
            for line in lines
            if 1 <= int(line[names.index("step")]) <= step
        ]
    except (csv.Error, ValueError, IndexError) as error:
        problem = f"cannot be gone on from ({one_line(str(error), 80)})"
        raise ValueError(one_line(f"{file} {problem}; delete it, or choose another folder")) from None
