"""Loading a checkpoint: a name that ships with the package, a folder, or a hub id. One call, or one clear
error.
"""

import logging
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2_5_VLForConditionalGeneration

from coral_lab.errors import CheckpointError, HubError
from coral_lab.models import adapters, cpu_memory, quantizing
from coral_lab.models.architectures import Architecture, check_quick
from coral_lab.models.checkpoint_files import Checked, checked, only_errors
from coral_lab.models.families import CORAL, PLAIN, SENTENCE_TRANSFORMERS, Family, check_positions, family_for
from coral_lab.models.folder_files import FILES, brief, few, refused
from coral_lab.models.model import Model, network_of, of_family
from coral_lab.models.processors import has_processor, processor_of
from coral_lab.models.sentence_models import SentenceModel, is_run_otherwise, sentence_model
from coral_lab.sources.hub import download
from coral_lab.sources.package_files import shipped

log = logging.getLogger(__name__)

SHIPPED = {
    "mini": "coral-mini",
    "mini-contrastive": "coral-mini-contrastive",
    "mini-base": "coral-mini-base",
    "mini-pretrained": "coral-mini-pretrained",
}
"""Names of the checkpoints in `data/`."""

HUB_ID = re.compile(r"(?![./~])[\w.-]+/[\w.-]+")

QUICK_FROM, QUICK_BEFORE = (5, 20), (5, 24)
"""Versions of transformers whose private names the quick path is known to fit; others get the plain path."""


def load(
    name: str | os.PathLike = "mini",
    *,
    family: Family | str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    attention: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    quick: bool | None = None,
    quantize: str | None = None,
) -> Model | SentenceModel:
    """Load one of SHIPPED ("mini", "mini-pretrained", …), a folder, or a hub id such as "Bia/CORAL": a
    Qwen2.5-VL, Qwen2-VL or Qwen3-VL, else any folder of sentence-transformers (`sentence_models.py`).

    `family` is how it is asked: a name in `families.FAMILIES`, a Family of one's own, or
    "sentence-transformers" for what the folder's own modules do; by default the one that its hub id, its
    folder's name or its config tells, else that of its modules if they pool otherwise, else CORAL. A folder
    may hold a LoRA adapter, which is merged into its base, one that is here already. `device` is by default
    CUDA, else MPS, else the CPU; `dtype` bfloat16 on GPUs, and on the CPU if it computes in bfloat16 itself
    and the checkpoint was saved in it (CORAL is, coral-mini is not: its figures do not depend on the
    machine), else float32; `attention` FlashAttention 2 on CUDA where it is installed, else SDPA, or
    `cpu_attention.py`'s for bfloat16 on a CPU. `revision` is a hub branch, tag or commit; `offline` looks
    only at what was downloaded. `quick` False makes embeddings by transformers' public names alone, as is
    done by default for other architectures than Qwen2.5-VL, and for versions that the quick path is not known
    to fit. `quantize` "int8" keeps the linear layers' weights in eight bits (`quantizing.py`), each made so
    as it is read, for encoding only: CORAL takes 4.1 GB on a card, not 7.5. (Nine parameters: each is one
    choice of `from_pretrained` or of the hub.) Only safetensors are read and no code from a checkpoint is
    run; what training left in it is named in one warning. Raises CheckpointError, one line with the way out,
    for anything that is not a whole checkpoint of these kinds, and ValueError for a choice that there is not.
    """
    device, dtype = _device(device), _dtype(dtype)
    quantizing.check(quantize, device)
    folder = checkpoint_folder(str(name), revision, offline)
    general = isinstance(family, str) and family == SENTENCE_TRANSFORMERS
    chosen = family_for(None if general else family, str(name), folder)
    if general or (chosen is None and is_run_otherwise(folder)):
        if quick or quantize or attention:
            problem = (
                f"{name} is run by sentence-transformers, which has no quick, quantize or attention here"
            )
            raise ValueError(f"{problem}; leave them out")
        wording = chosen or (PLAIN if is_run_otherwise(folder) else CORAL)
        return sentence_model(folder, str(name), device, dtype, wording)
    return load_checkpoint(
        folder,
        str(name),
        chosen or CORAL,
        device=device,
        dtype=dtype,
        attention=attention,
        quick=quick,
        quantize=quantize,
    )


def load_network(name: str | os.PathLike = "mini", **options: Any) -> Model:
    """As `load`, with its options, for what needs the network itself: training, decoders, states by layer.
    Raises CheckpointError also for a folder that sentence-transformers runs.
    """
    return network_of(load(name, **options), "this")


def load_checkpoint(
    folder: Path,
    name: str,
    family: Family = CORAL,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    attention: str | None = None,
    quick: bool | None = None,
    quantize: str | None = None,
) -> Model:
    """A folder of an architecture that is known, as `load` says. (Eight parameters: `load`'s.)"""
    device = _device(device)
    dtype = _dtype(dtype)
    quantizing.check(quantize, device)
    lora = adapters.lora_of(folder) if (folder / adapters.CONFIG).is_file() else None
    if lora and quantize:
        way = "load it without quantize, save that whole, and load what was saved"
        raise refused(folder, f"is an adapter, which is not merged into {quantize} weights", way)
    whole = _base(folder, lora.base) if lora else folder
    found = checked(whole)
    quick = _quick(found.architecture, family, name, quick)
    processor = processor_of(folder if has_processor(folder) else whole, found.config)
    dtype = dtype or _best_dtype(device, found.dtype)
    attention = attention or _best_attention(device, dtype, quick)
    network = _network(whole, found, dtype, device, attention, quantize)
    if quick:
        make_quick(network, attention)
    network = adapters.merged(network, folder, lora) if lora else network
    return of_family(Model(name, network.to(device).eval(), processor, quick), family)


def best_device() -> str:
    """The first of "cuda", "mps" and "cpu" that is here; of several processes that were started together
    (`torchrun`) each has a CUDA device of its own.
    """
    if torch.cuda.is_available():
        local = os.environ.get("LOCAL_RANK", "")
        return f"cuda:{local}" if local.isdigit() else "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _quick(architecture: Architecture, family: Family, name: str, asked: bool | None) -> bool:
    if asked:
        check_quick(architecture, name)
        check_positions(family, name)
    can = architecture.quick and not family.flat_positions
    return can and _fits() if asked is None else asked


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


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (None, torch.float32, torch.bfloat16, torch.float16) or (found is None and dtype):
        raise ValueError(f"dtype is {dtype!r}; use float32, bfloat16 or float16")
    return found


def _best_dtype(device: torch.device, saved: torch.dtype | None) -> torch.dtype:
    halves = device.type != "cpu" or (saved == torch.bfloat16 and computes_bfloat16())
    return torch.bfloat16 if halves else torch.float32


@cache
def computes_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them they are slower than
    float32.
    """
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def checkpoint_folder(name: str, revision: str | None = None, offline: bool = False) -> Path:
    """The local folder of a checkpoint by its shipped name, path or hub id; a hub id is downloaded."""
    if name in SHIPPED:
        return shipped(f"data/{SHIPPED[name]}")
    if os.path.isdir(name):  # unlike Path's, False for what can be no path too
        return Path(name)
    if os.path.isfile(name):
        raise refused(name, "is a file", "give the folder of a checkpoint")
    if not HUB_ID.fullmatch(name):
        problem = f"is no folder, no hub id (owner/name) and none of {', '.join(SHIPPED)}"
        raise refused(repr(name), problem, "check the spelling")
    try:
        return download(name, FILES, revision=revision, offline=offline)
    except HubError as error:
        raise CheckpointError(brief(error)) from error


def _base(folder: Path, name: str) -> Path:
    """The folder of an adapter's base. What a stranger's adapter names is never downloaded by itself."""
    if name not in SHIPPED and not os.path.isdir(name) and HUB_ID.fullmatch(name):
        try:
            return download(name, FILES, offline=True)
        except HubError:
            problem = f"is for {brief(name, 90)}, which is not downloaded"
            way = f"download it first: coral-lab download --model {brief(name, 90)}"
            raise refused(folder / adapters.CONFIG, problem, way) from None
    whole = checkpoint_folder(name, None, offline=True)
    if (whole / adapters.CONFIG).is_file():  # transformers would go on to the base that this one names
        raise refused(folder, "is for a base that is itself an adapter", "merge and save that one first")
    return whole


def _network(
    folder: Path,
    found: Checked,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
    quantize: str | None,
) -> Any:
    """The model of a folder on the CPU or, where accelerate is here, straight on its device; every weight
    accounted for.
    """
    straight = device.type != "cpu" and find_spec("accelerate") is not None
    try:
        with only_errors():
            loaded: Any = found.architecture.network.from_pretrained(
                folder,
                config=found.config,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                device_map={"": device} if straight else None,
                quantization_config=quantizing.config(quantize),
            )
    except Exception as error:  # by what is here: memory, the device, the attention asked for
        raise refused(
            folder, f"could not be loaded: {brief(error)}", "mend that, or download it again"
        ) from error
    network, report = loaded
    if quantize:
        cpu_memory.give_back()
    _check_report(report, folder)
    if found.unused:
        unused = "; ".join(found.unused)
        log.warning("%s", brief(f"{folder}: left by training, not used: {unused}"))
    return network


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
    quantizing.use(network)
    cpu_linear.use(network)


def _check_report(report: dict, folder: Path) -> None:
    """A checkpoint with holes loads in silence, with random weights in them; none should get here."""
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(map(str, report.get(kind) or ()))
        if keys:
            problem = f"has {len(keys)} {kind.replace('_', ' ')} ({few(keys)})"
            raise refused(folder, problem, "it is incomplete or another model, download it again")
