"""Loading a checkpoint: a name that ships with the package, a folder, or a hub id. One call, or one clear
error.
"""

import json
import logging
import os
import re
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from coral_lab.errors import CheckpointError, HubError
from coral_lab.models.adapters import base_of, merged
from coral_lab.models.pixels import Pixels
from coral_lab.results import grey, paragraph
from coral_lab.sources.hub import download
from coral_lab.sources.package_files import shipped

log = logging.getLogger(__name__)

SHIPPED = {
    "mini": "coral-mini",
    "mini-contrastive": "coral-mini-contrastive",
    "mini-base": "coral-mini-base",
}
"""Names of the checkpoints in `data/`."""

QUICK_FROM, QUICK_BEFORE = (5, 20), (5, 24)
"""Versions of transformers whose private names the quick path is known to fit; others get the plain path."""

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickled weights, no code


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded checkpoint: the transformers model and its processor, nothing hidden.

    `quick` says whether embeddings are made by this room's quick path or, slower, by transformers' public
    names alone.
    """

    name: str
    network: Qwen2_5_VLForConditionalGeneration
    processor: Qwen2_5_VLProcessor
    quick: bool = True

    @cached_property
    def pixels(self) -> Pixels:
        """The pictures that this model's image processor has seen."""
        return Pixels(self.processor.image_processor)

    @cached_property
    def turn(self) -> AbstractContextManager:
        """Held while the network runs: its caches and hooks are of one call, so that threads take turns."""
        return threading.RLock()

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def dim(self) -> int:
        """Length of an embedding: 2048 for CORAL."""
        return self._text_config.hidden_size

    @property
    def longest(self) -> int:
        """Most tokens that it reads."""
        return self._text_config.max_position_embeddings

    @property
    def _text_config(self) -> Any:
        return self.network.config.text_config

    @property
    def attention(self) -> str:
        """The text model's attention implementation."""
        return self.network.model.language_model.config._attn_implementation

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        # torchvision's and Pillow's image processors differ in the last bits: say which one it is
        pictures = type(self.processor.image_processor).__name__
        kind = f"{str(self.dtype).removeprefix('torch.')}, {self.device}, {self.attention}, {pictures}"
        return f"Model({self.name!r}: {millions:,.1f} M parameters, {self.dim} dimensions, {kind})"

    def _repr_html_(self) -> str:
        return paragraph(f"<b>{escape(self.name)}</b> {grey(repr(self).partition(': ')[2].rstrip(')'))}")


def load(
    name: str | os.PathLike = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    attention: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    quick: bool | None = None,
) -> Model:
    """Load "mini", "mini-contrastive", "mini-base", a folder, or a hub id such as "Bia/CORAL".

    A folder may hold a LoRA adapter, which is merged into its base. `device` is by default CUDA, else MPS,
    else the CPU; `dtype` bfloat16 on GPUs, and on the CPU if it computes in bfloat16 itself and the
    checkpoint was saved in it (CORAL is, coral-mini is not: its figures do not depend on the machine), else
    float32; `attention` FlashAttention 2 on CUDA where it is installed, else SDPA, or `cpu_attention.py`'s
    for bfloat16 on a CPU. `revision` is a hub branch, tag or commit; `offline` looks only at what was
    downloaded. `quick` False makes embeddings by transformers' public names alone, as is done by default for
    versions that the quick path is not known to fit. (Seven parameters: each is one choice of
    `from_pretrained` or of the hub.) Only safetensors are read and no code from a checkpoint is run. Raises
    CheckpointError, with the way out, for anything that is not a whole Qwen2.5-VL checkpoint.
    """
    device = _device(device)
    dtype = _checked(dtype)
    quick = _fits() if quick is None else quick
    folder = checkpoint_folder(str(name), revision, offline)
    if (folder / "adapter_config.json").is_file():
        whole = checkpoint_folder(base_of(folder), None, offline)
        network = merged(_network(whole, dtype, device, attention, quick), folder)
        processors = folder if (folder / "tokenizer_config.json").is_file() else whole
    else:
        network, processors = _network(folder, dtype, device, attention, quick), folder
    return Model(str(name), network.to(device).eval(), _processor(processors), quick)


def same_embeddings(a: Model, b: Model) -> bool:
    """Whether two models make the same embeddings: the same weights to the bit, in one dtype, by equal
    processors.
    """
    if a is b:
        return True
    if a.dim != b.dim or a.dtype != b.dtype:
        return False
    processors = [model.processor.image_processor.to_json_string() for model in (a, b)]
    templates = [model.processor.chat_template for model in (a, b)]
    mine, theirs = a.network.state_dict(), b.network.state_dict()
    if len({*processors}) > 1 or len({*templates}) > 1 or mine.keys() != theirs.keys():
        return False
    return all(torch.equal(mine[name], theirs[name].to(mine[name].device)) for name in mine)


def best_device() -> str:
    """The first of "cuda", "mps" and "cpu" that is here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _fits() -> bool:
    """Whether this version of transformers is one that the quick path is known to fit."""
    version = tuple(int(number) for number in transformers.__version__.split(".")[:2])
    if QUICK_FROM <= version < QUICK_BEFORE:
        return True
    log.warning(
        "transformers %s is new to coral_lab: embeddings are made the plain, slower way",
        transformers.__version__,
    )
    return False


def _device(name: str | torch.device | None) -> torch.device:
    try:
        return torch.device(name or best_device())
    except RuntimeError:
        raise ValueError(f"device is {name!r}; use cuda, cuda:1, mps or cpu") from None


def _checked(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (None, torch.float32, torch.bfloat16, torch.float16) or (found is None and dtype):
        raise ValueError(f"dtype is {dtype!r}; use float32, bfloat16 or float16")
    return found


def _best_dtype(device: torch.device, config: dict) -> torch.dtype:
    saved = config.get("dtype", config.get("torch_dtype"))
    halves = device.type != "cpu" or (saved == "bfloat16" and _computes_bfloat16())
    return torch.bfloat16 if halves else torch.float32


def _computes_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them they are slower than
    float32.
    """
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def checkpoint_folder(name: str, revision: str | None = None, offline: bool = False) -> Path:
    """The local folder of a checkpoint by its shipped name, path or hub id; a hub id is downloaded."""
    if name in SHIPPED:
        return shipped(f"data/{SHIPPED[name]}")
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/", "~")):
        names = ", ".join(SHIPPED)
        raise CheckpointError(
            f"{name!r} is no folder, no hub id (owner/name) and none of {names}; check the spelling"
        )
    try:
        return download(name, FILES, revision=revision, offline=offline)
    except HubError as error:
        raise CheckpointError(str(error)) from error


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing; {file.parent} is no whole checkpoint, copy it again"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON ({error}); copy it again") from error


def _network(
    folder: Path, dtype: torch.dtype | None, device: torch.device, attention: str | None, quick: bool
) -> Any:
    """The model of a folder on the CPU or, where accelerate is here, straight on its device; every weight
    accounted for.
    """
    _refuse_pointers(folder)
    config = _read_json(folder / "config.json")
    architectures = config.get("architectures")
    if architectures != [ARCHITECTURE]:
        raise CheckpointError(
            f"{folder} is a {architectures} checkpoint; coral_lab reads {ARCHITECTURE} only"
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has no *.safetensors; convert its weights, pickled ones are not loaded"
        )
    dtype = dtype or _best_dtype(device, config)
    straight = device.type != "cpu" and find_spec("accelerate") is not None
    attention = attention or _best_attention(device, dtype, quick)
    try:
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            device_map={"": device} if straight else None,
        )
    except (OSError, RuntimeError, ValueError, ImportError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be loaded: {error}") from error
    network, report = loaded
    _check_report(report, folder)
    if quick:
        make_quick(network, attention)
    return network


def _refuse_pointers(folder: Path) -> None:
    """A clone without git-lfs has small text files in place of large ones."""
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        if file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{file} is a git-lfs pointer, not the file; run `git lfs pull` there")


def _best_attention(device: torch.device, dtype: torch.dtype, quick: bool) -> str:
    if device.type == "cuda" and dtype != torch.float32 and find_spec("flash_attn") is not None:
        return "flash_attention_2"
    if quick and device.type == "cpu" and dtype == torch.bfloat16:
        from coral_lab.models import cpu_attention

        return cpu_attention.NAME
    return "sdpa"


def make_quick(network: Qwen2_5_VLForConditionalGeneration, attention: str = "sdpa") -> None:
    """Let a network work out the same sums in fewer calls and by quicker kernels, in place."""
    from coral_lab.models import cpu_attention, cpu_linear, window_attention

    if attention in ("sdpa", cpu_attention.NAME):
        network.model.visual.config._attn_implementation = window_attention.NAME
    window_attention.project_at_once(network.model.visual)
    cpu_linear.use(network)


def _check_report(report: dict, folder: Path) -> None:
    """A checkpoint with holes loads in silence, with random weights in them: refuse it."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(map(str, report.get(kind) or ()))
        if keys:
            few = ", ".join(keys[:3]) + (" …" if len(keys) > 3 else "")
            problem = f"{len(keys)} {kind.replace('_', ' ')} ({few})"
            raise CheckpointError(
                f"{folder} has {problem}; it is incomplete or another model, download it again"
            )


def _processor(folder: Path) -> Qwen2_5_VLProcessor:
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} has no working processor: {error}") from error
    if not isinstance(processor, Qwen2_5_VLProcessor) or not processor.chat_template:
        raise CheckpointError(
            f"{folder} has a {type(processor).__name__}, not a Qwen2.5-VL one with a chat template"
        )
    processor.tokenizer.padding_side = "left"
    return processor
