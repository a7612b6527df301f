"""A checkpoint of Qwen2.5-VL-3B's exact shape with random weights, laid out as the hub has released ones:
what is tried on it is tried on CORAL's size, and on files like CORAL's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from tqdm.auto import tqdm
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from coral_lab.mini.architecture import CHAT_TEMPLATE
from coral_lab.mini.rehearsal_vocabulary import tokenizer_files
from coral_lab.models.checkpoint_files import only_errors
from coral_lab.sources.files import fresh_file, output_folder, write_text

SHAPE: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
"""Qwen2.5-VL-3B's config.json, flat as its first release has it."""

_DECODER = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 3, "is_decoder": True}
LEFTOVERS: dict[str, Any] = {
    **{name: _DECODER for name in ("decoder", "encoder", "decoder_config", "encoder_config")},
    **{name: {"vision": _DECODER, "language": _DECODER} for name in ("decoders", "encoders")},
    "generation_config": {"max_length": 20},
}
"""Settings that Coral's training leaves in config.json: by these names others take them out before they
load CORAL (EIT-NLP/MCMR, `eval/retrieval/coral.py`).
"""

_PICTURES = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}

_GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "eos_token_id": [151645, 151643],
    "do_sample": True,
    "repetition_penalty": 1.05,
    "temperature": 1e-06,
}

SHARDS = 3
INDEX = "model.safetensors.index.json"
GAIN = 2.0
"""Times what keeps a layer's outputs as large as its inputs: attention then looks at some tokens more than at
others, and different inputs come out clearly different.
"""

_AT_ONCE = 2**23  # numbers that are drawn at a time

Shapes = dict[str, tuple[int, ...]]


def write_checkpoint(
    folder: str | Path,
    *,
    vocabulary: str | Path | None = None,
    shape: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Write a checkpoint of random bfloat16 weights in three shards, one tensor after another.

    `vocabulary` is Qwen's file of tokens and ranks (`qwen.tiktoken`, in the package dashscope on PyPI);
    without it a vocabulary of the same size is made up. `shape` replaces values of `SHAPE`, for a smaller
    network. Shards that are whole stay as they are, and the index comes last: what a killed run left has
    none, and is gone on from. Raises ValueError for a folder of other weights, or no such vocabulary.
    """
    folder = output_folder(folder)
    config = _config(shape or {})
    parts = _parts(folder, weight_shapes(config))
    headers = {file: _header(part, seed) for file, part in parts.items()}
    missing = [file for file, head in headers.items() if not _is_whole(file, head, parts[file])]
    index = folder / INDEX
    if not missing and index.is_file():
        return
    index.unlink(missing_ok=True)
    small = tokenizer_files(vocabulary) | {
        "config.json": config | LEFTOVERS,
        "generation_config.json": _GENERATION,
        "preprocessor_config.json": _PICTURES,
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }
    for name, content in small.items():
        indent = None if name == "tokenizer.json" else 2
        write_text(folder / name, json.dumps(content, indent=indent, ensure_ascii=False))
    for file in missing:
        _write_shard(file, headers[file], parts[file], seed)
    where = {name: file.name for file, part in parts.items() for name in part}
    size = sum(_bytes(part) for part in parts.values())
    write_text(index, json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=2))


def _config(shape: Mapping[str, Any]) -> dict[str, Any]:
    return SHAPE | dict(shape) | {"vision_config": SHAPE["vision_config"] | shape.get("vision_config", {})}


def weight_shapes(config: Mapping[str, Any]) -> Shapes:
    """The shape of every weight, by the names of the first release; no memory is taken."""
    with only_errors(), torch.device("meta"):
        network = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(config)))
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if network.config.tie_word_embeddings:
        del own["lm_head.weight"]
    return {_first_name(name): found for name, found in own.items()}


def _first_name(name: str) -> str:
    return name.replace("model.visual.", "visual.", 1).replace("model.language_model.", "model.", 1)


def _bytes(part: Shapes) -> int:
    return 2 * sum(map(prod, part.values()))


def _parts(folder: Path, shapes: Shapes) -> dict[Path, Shapes]:
    """The shards, about equally large, and what each holds. Raises ValueError if other weights are there."""
    files = [folder / f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors" for i in range(SHARDS)]
    if others := sorted({*folder.glob("*.safetensors")} - {*files}):
        raise ValueError(f"{others[0]} is of another checkpoint; name another folder")
    parts: dict[Path, Shapes] = {file: {} for file in files}
    whole, before = _bytes(shapes), 0
    for name, own in shapes.items():
        parts[files[SHARDS * before // whole]][name] = own
        before += _bytes({name: own})
    return parts


def _header(part: Shapes, seed: int) -> bytes:
    """How a safetensors file begins; its metadata say which seed the numbers are drawn from."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt", "seed": str(seed)}}
    end = 0
    for name, own in part.items():
        table[name] = {"dtype": "BF16", "shape": own, "data_offsets": [end, end + 2 * prod(own)]}
        end = table[name]["data_offsets"][1]
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _is_whole(file: Path, head: bytes, part: Shapes) -> bool:
    """Whether a shard is there. Raises ValueError for one that is none of these."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        same = opened.read(len(head)) == head
    if not same or file.stat().st_size != len(head) + _bytes(part):
        raise ValueError(f"{file} holds other weights; name another folder")
    return True


def _write_shard(file: Path, head: bytes, part: Shapes, seed: int) -> None:
    with (
        fresh_file(file) as opened,
        tqdm(total=_bytes(part), desc=file.name, unit="B", unit_scale=True) as progress,
    ):
        opened.write(head)
        for name, own in part.items():
            for numbers in random_weight(name, own, seed):
                opened.write(numbers.view(torch.uint8).numpy().data)
                progress.update(numbers.nbytes)


def random_weight(name: str, shape: Sequence[int], seed: int) -> Iterator[torch.Tensor]:
    """A weight's numbers in bfloat16, in order, some at a time. They depend on its name and the seed."""
    random = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
    norm = len(shape) == 1 and name.endswith("weight")
    if name.endswith("bias"):
        spread = 0.1
    elif "embed_tokens" in name:
        spread = 1.0
    else:
        spread = GAIN / prod(shape[1:]) ** 0.5
    for start in range(0, prod(shape), _AT_ONCE):
        count = min(_AT_ONCE, prod(shape) - start)
        numbers = torch.ones(count) if norm else torch.randn(count, generator=random) * spread
        yield numbers.to(torch.bfloat16)
