"""Loading a checkpoint: a name that ships with the repository, a folder, or a hub id. One call, or one clear error."""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from coral_lab import html
from coral_lab.errors import WorkbenchError
from coral_lab.models import cpu_attention, cpu_linear
from coral_lab.models import window_attention as vision
from coral_lab.models.pixels import Pixels
from coral_lab.sources.hub import HubError, download

DATA = Path(__file__).resolve().parents[2] / "data"
SHIPPED = {
    "mini": "coral-mini",
    "mini-contrastive": "coral-mini-contrastive",
    "mini-base": "coral-mini-base",
}
"""Names of the checkpoints in `data/`."""

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickled weights, no code


class CheckpointError(WorkbenchError):
    """A checkpoint that cannot be used; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded checkpoint: the transformers model and its processor, nothing hidden."""

    name: str
    network: Qwen2_5_VLForConditionalGeneration
    processor: Qwen2_5_VLProcessor

    @cached_property
    def pixels(self) -> Pixels:
        """The pictures that this model's image processor has seen."""
        return Pixels(self.processor.image_processor)

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def dim(self) -> int:
        """Length of an embedding: 2048 for CORAL."""
        return self.network.config.text_config.hidden_size

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
        return html.block(
            f"<b>{escape(self.name)}</b> {html.grey(repr(self).partition(': ')[2].rstrip(')'))}"
        )


def load(
    name: str | os.PathLike = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    attention: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Model:
    """Load "mini", "mini-contrastive", "mini-base", a folder, or a hub id such as "Bia/CORAL".

    A folder may hold a LoRA adapter, which is merged into its base. `device` is by default CUDA, else MPS, else
    the CPU; `dtype` bfloat16 on GPUs, and on the CPU if it computes in bfloat16 itself and the checkpoint was saved in
    it (CORAL is, coral-mini is not: its figures do not depend on the machine), else float32; `attention`
    FlashAttention 2 on CUDA where it is installed, else SDPA, or `cpu_attention.py`'s for bfloat16 on a CPU. `revision`
    is a hub branch, tag or commit; `offline` looks only at what was downloaded. Only safetensors are read and no code from a checkpoint is run.
    Raises CheckpointError, with the way out, for anything that is not a whole Qwen2.5-VL checkpoint.
    """
    device = torch.device(device or best_device())
    dtype = _checked(dtype)
    folder = _folder(str(name), revision, offline)
    if (folder / "adapter_config.json").is_file():
        base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        if not base:
            raise CheckpointError(
                f"{folder}/adapter_config.json names no base model; set base_model_name_or_path"
            )
        whole = _folder(base, None, offline)
        network = _merge_adapter(_network(whole, dtype, device, attention), folder)
        processors = folder if (folder / "tokenizer_config.json").is_file() else whole
    else:
        network, processors = _network(folder, dtype, device, attention), folder
    return Model(str(name), network.to(device).eval(), _processor(processors))


def best_device() -> str:
    """The first of "cuda", "mps" and "cpu" that is here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
    """Whether this CPU has instructions for products of bfloat16; without them they are slower than float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _folder(name: str, revision: str | None, offline: bool) -> Path:
    """The local folder of a checkpoint, downloaded if it is a hub id."""
    if name in SHIPPED:
        folder = DATA / SHIPPED[name]
        if not folder.is_dir():
            raise CheckpointError(
                f"{name!r} should be in {folder}, which is missing; restore it, or run `make mini`"
            )
        return folder
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


def _network(folder: Path, dtype: torch.dtype | None, device: torch.device, attention: str | None):
    """The model of a folder on the CPU or, where it fits, straight on its device; every weight accounted for."""
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
    if attention is None:
        has_flash = device.type == "cuda" and dtype != torch.float32 and find_spec("flash_attn") is not None
        by_products = device.type == "cpu" and dtype == torch.bfloat16
        attention = "flash_attention_2" if has_flash else cpu_attention.NAME if by_products else "sdpa"
    try:
        network, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, output_loading_info=True, use_safetensors=True,
            local_files_only=True, device_map={"": device} if device.type != "cpu" else None,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, ImportError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be loaded: {error}") from error
    _check_report(report, folder)
    if attention in ("sdpa", cpu_attention.NAME):  # the same sums in fewer calls
        network.model.visual.config._attn_implementation = vision.NAME
    vision.project_at_once(network.model.visual)
    cpu_linear.use(network)
    return network


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


def _merge_adapter(network, folder: Path):
    from peft import PeftModel, get_peft_model_state_dict

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing; save the adapter with safetensors")
    model = PeftModel.from_pretrained(network, folder, local_files_only=True)
    with safe_open(weights, "pt") as file:
        saved, wanted = set(file.keys()), set(get_peft_model_state_dict(model))
    if saved != wanted:
        count = len(saved ^ wanted)
        raise CheckpointError(
            f"{folder}: {count} adapter weights do not fit its base; use the base it was trained on"
        )
    return model.merge_and_unload()


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


def add_lora(model: Model, rank: int = 16, seed: int = 0) -> None:
    """Freeze the network and add LoRA adapters to every linear layer of its text model (peft's own defaults else)."""
    from peft import LoraConfig

    layers = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=rf".*language_model.*\.({layers})")
    config.base_model_name_or_path = model.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.network.add_adapter(config)


def save(model: Model, folder: str | os.PathLike) -> None:
    """Write a checkpoint that transformers, coral_lab and `SentenceTransformer(folder)` all load by its path alone.

    With LoRA adapters only these are written; `load` merges them into the model they were trained on.
    """
    folder = Path(folder)
    model.network.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    if getattr(model.network, "_hf_peft_config_loaded", False):
        return
    for file, content in _sentence_transformers_files(model.dim).items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sentence_transformers_files(dim: int) -> dict[str, list | dict]:
    """Last-token pooling after the generation prompt; without these files mean pooling would be taken."""
    modules = {
        "": "sentence_transformers.base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    reads = {"method": "forward", "method_output_name": "last_hidden_state"}
    kinds = {"text": reads, "image": reads, "message": reads | {"format": "structured"}}
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction", "modality_config": kinds,
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
        "1_Pooling/config.json": {"embedding_dimension": dim, "pooling_mode": "lasttoken", "include_prompt": True},
        "2_Normalize/config.json": {
            "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"
        },
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }  # fmt: skip
