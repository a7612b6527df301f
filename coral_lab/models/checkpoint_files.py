"""A checkpoint's files, looked through once, where they enter: its config and the headers of its weights say
whether it is a whole checkpoint of an architecture that is read (`architectures.py`) before a weight is read
or memory is taken.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from qwen_vl_utils.vision_process import SPATIAL_MERGE_SIZE
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.utils import logging as transformers_logging

from coral_lab.models.architectures import ARCHITECTURES, QWEN2_5_VL, QWEN3_VL, Architecture
from coral_lab.models.folder_files import brief, few, look_over, read_json, refused

CHOSEN_HERE = ("auto_map", "attn_implementation", "experts_implementation", "transformers_weights")
"""Fields that name code or files to a loader; so do private ones."""

Shape = tuple[int, ...]
MOST_NUMBERS = 2**20
"""Of what is worked out when loading; those of the architectures are below a thousand."""

LONGEST_HEADER = 2**23
"""Bytes of what a weights file says of its tensors; one of Qwen2.5-VL-72B has 20,000."""

FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Checked:
    """What a whole checkpoint says of itself: its architecture, its config for transformers, the dtype it was
    saved in, and what in it has no use here.
    """

    architecture: Architecture
    config: PreTrainedConfig
    dtype: torch.dtype | None
    unused: tuple[str, ...]


@contextmanager
def only_errors() -> Iterator[None]:
    """Keep transformers from notes on older settings and tables of what is not used: we say it in a line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def checked(folder: Path) -> Checked:
    """Look a folder through before its weights are read. Raises CheckpointError unless it is a whole
    checkpoint.

    What training left in it (decoders' settings and weights) is no fault: it is named, and not read. A
    weight of the network that is missing, of another shape, in two places or without a place is one.
    """
    look_over(folder)
    raw = read_json(folder / "config.json")
    architecture = _architecture(folder, raw.get("architectures"))
    if raw.get("quantization_config"):
        raise refused(folder, "is quantised (quantization_config)", "use the checkpoint it was made from")
    generation = folder / "generation_config.json"  # transformers reads it last of all
    if generation.exists():
        read_json(generation)
    shapes = weight_shapes(folder)
    _refuse_more_layers(folder / "config.json", raw, len(shapes))
    settings = _take_leftovers(raw, architecture)
    try:
        with only_errors(), torch.device("meta"):
            config: Any = architecture.kinds[0].from_dict(raw)
            network = architecture.network(config)
        _check_what_no_shape_says(config.text_config, config.vision_config, architecture)
        _check_what_no_file_has(network)
        dtype = config.dtype
        if dtype is None:  # Qwen3-VL's says it of the text alone
            dtype = config.text_config.dtype
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype is {dtype!r}, wanted float32, bfloat16 or float16")
    except Exception as error:  # transformers checks some fields by types of its own, others by failing
        raise refused(
            folder / "config.json", f"does not fit {architecture.title}: {brief(error)}", "copy it again"
        ) from error
    config.name_or_path = str(folder)
    spare = _spare_weights(folder, network, shapes)
    counted = {"settings of config.json": settings, "weights": spare}
    unused = (f"{len(names)} {what} ({few(names)})" for what, names in counted.items() if names)
    return Checked(architecture, config, dtype, tuple(unused))


def _architecture(folder: Path, architectures: Any) -> Architecture:
    for name, architecture in ARCHITECTURES.items():
        if architectures in [[own] for own in (name, *architecture.also)]:
            return architecture
    *others, last = ARCHITECTURES
    found = brief(f"is a {architectures} checkpoint", 120)
    known = f"{', '.join(others)} and {last}"
    way = f"coral_lab reads {known} only, and others by modules.json, not by mean pooling"
    raise refused(folder, found, way)


def weight_shapes(folder: Path) -> dict[str, Shape]:
    """The shape of every weight, from the headers of the files that transformers reads. Raises
    CheckpointError.
    """
    found: dict[str, Shape] = {}
    for file in _weight_files(folder):
        for name, shape in header(file).items():
            if name in found:
                raise refused(file, f"holds {brief(name, 80)}, which another shard has too", "copy it again")
            found[name] = shape
    return found


def header(file: Path) -> dict[str, Shape]:
    """The shape of every weight in a file. Raises CheckpointError for weights that are no floats."""
    try:
        with file.open("rb") as start:
            size = int.from_bytes(start.read(8), "little")
        if size > LONGEST_HEADER:
            raise OSError(f"its header has {size:,} bytes, more than {LONGEST_HEADER:,}")
        with safe_open(file, "pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
            kinds = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    except (OSError, SafetensorError) as error:
        raise refused(file, f"could not be loaded: {error}", "download it again") from error
    whole = [f"{name} as {kind}" for name, kind in kinds.items() if kind not in FLOATS]
    if whole:
        raise refused(file, f"holds {few(whole)}", "use a checkpoint of float32, float16 or bfloat16 weights")
    return shapes


def names_here(network: Any, saved: Iterable[str]) -> dict[str, str]:
    """What the network calls each saved weight: transformers' own renaming of what older versions saved."""
    renamings = [
        found for found in get_model_conversion_mapping(network) if isinstance(found, WeightRenaming)
    ]
    known, prefix = network.state_dict(), network.base_model_prefix
    return {name: rename_source_key(name, renamings, [], prefix, known)[0] for name in saved}


def _weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, else the shards that the index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not any(folder.glob("*.safetensors")):
        raise refused(folder, "has no *.safetensors", "convert its weights, pickled ones are not loaded")
    shards = read_json(index).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) and _all_text(shards.values()) else set()
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise refused(index, "does not say which *.safetensors beside it holds what", "download it again")
    gone = sorted(name for name in names if not (folder / name).is_file())
    if gone:
        raise refused(folder, f"lacks {len(gone)} of {len(names)} shards ({few(gone)})", "download it again")
    return [folder / name for name in sorted(names)]


def _all_text(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _parts(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A config, and its configs for text and vision."""
    inner = [raw.get(name) for name in ("text_config", "vision_config")]
    return [part for part in (raw, *inner) if isinstance(part, dict)]


def _refuse_more_layers(file: Path, raw: Mapping[str, Any], weights: int) -> None:
    """A layer has several weights: a config of more layers than that would be built for hours."""
    for name in ("num_hidden_layers", "depth", "deepstack_visual_indexes"):
        for found in (part.get(name) for part in _parts(raw)):
            layers = len(found) if isinstance(found, list) else found
            if isinstance(layers, int) and layers > weights:
                says = f"says {name} {brief(layers, 30)}, and there are {weights} weights in all"
                raise refused(file, says, "download it again")


def _check_what_no_shape_says(text: Any, vision: Any, architecture: Architecture) -> None:
    """How a head's places are divided among time, height and width, how wide a window is, and which layers of
    the vision tower the text model reads besides the last.
    """
    own = text.head_dim if architecture is QWEN3_VL else text.hidden_size // text.num_attention_heads
    half = own // 2
    section = text.rope_parameters.get("mrope_section", list(architecture.sections))
    if not isinstance(section, list) or not all(isinstance(n, int) for n in section) or sum(section) != half:
        raise ValueError(f"mrope_section is {section!r}, wanted three numbers with the sum {half}")
    if architecture is QWEN2_5_VL:
        token = vision.patch_size * vision.spatial_merge_size
        if not token <= vision.window_size <= 64 * token:
            raise ValueError(f"window_size is {vision.window_size}, wanted a few times {token}")
    if architecture is QWEN3_VL:
        _check_deepstack(vision, text.num_hidden_layers)


def _check_deepstack(vision: Any, text_layers: int) -> None:
    """transformers leaves out, in silence, layers that are not there and features for which the text model
    has no layer, and rounds a grid of positions that is no square.
    """
    layers, known = vision.deepstack_visual_indexes, range(vision.depth)
    if len({*layers}) < len(layers) or not all(layer in known for layer in layers):
        said = f"deepstack_visual_indexes are {brief(list(layers), 60)}"
        raise ValueError(f"{said}, wanted different layers from 0 to {vision.depth - 1}")
    if len(layers) > text_layers:
        raise ValueError(f"deepstack_visual_indexes are {len(layers)}, for {text_layers} text layers")
    if isqrt(vision.num_position_embeddings) ** 2 != vision.num_position_embeddings:
        raise ValueError(f"num_position_embeddings is {vision.num_position_embeddings}, wanted a square")
    if vision.spatial_merge_size != SPATIAL_MERGE_SIZE:  # its processor does not resize again
        found = vision.spatial_merge_size
        raise ValueError(f"spatial_merge_size is {found}, wanted qwen-vl-utils' {SPATIAL_MERGE_SIZE}")


def _check_what_no_file_has(network: Any) -> None:
    """Frequencies are worked out when loading, as many as a config says."""
    size = sum(buffer.numel() for buffer in network.buffers())
    if size > MOST_NUMBERS:
        raise ValueError(f"it asks for {size:,} frequencies, more than {MOST_NUMBERS:,}")


def _take_leftovers(raw: dict[str, Any], architecture: Architecture) -> list[str]:
    """Take out of a config what transformers' has no field for and might take for a part of the model."""
    kinds: Any = architecture.kinds
    known = {field.name for kind in kinds for field in fields(kind)} | {"rope_scaling"}
    # code is never run, attention is chosen when loading, and weights have one name
    for part in _parts(raw):
        for name in [name for name in part if name.startswith("_") or name in CHOSEN_HERE]:
            part.pop(name)
    taken = []
    for part in _parts(raw):
        for name in [name for name in part if name not in known]:
            named = name in ("decoder", "encoder", "generator", "text_encoder") and part[name] is not None
            if named or isinstance(part[name], dict | list):
                taken += [name] if part.pop(name) else []
    return taken


def _spare_weights(folder: Path, network: Any, shapes: Mapping[str, Shape]) -> list[str]:
    """The weights that the network has no place for. Raises CheckpointError if any of its own is not there
    as it is wanted.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    here = names_here(network, shapes)
    saved = {name: old for old, name in here.items()}
    if len(saved) < len(here):
        twice = sorted(name for name in saved if list(here.values()).count(name) > 1)
        problem = f"has {len(twice)} weights under two names each ({few(twice)})"
        raise refused(folder, problem, "keep those that were trained last")
    missing = wanted.keys() - saved.keys()
    head, first = "lm_head.weight", "model.language_model.embed_tokens.weight"
    if network.config.tie_word_embeddings:  # either is both
        missing -= {head, first} if head in saved else {head}
    spare = sorted(saved[name] for name in saved.keys() - wanted.keys())
    own = [name for name in spare if _belongs(here[name], wanted)]
    other = [old for old, name in here.items() if shapes[old] != wanted.get(name, shapes[old])]
    sizes = [f"{old} {_size(shapes[old])}, not {_size(wanted[here[old]])}" for old in sorted(other)]
    named = {"missing keys": sorted(missing), "mismatched keys": sizes}
    named["unexpected keys"] = spare if missing else own
    found = {kind: names for kind, names in named.items() if names}
    most = 3 if len(found) == 1 else 1
    problems = [f"{len(names)} {kind} ({few(names, most)})" for kind, names in found.items()]
    if problems:
        wrapper = _wrapper(network, spare, missing)
        way = "it is incomplete or another model, download it again"
        way = f"names begin with {wrapper!r}, save the model inside" if wrapper else way
        raise refused(folder, f"has {' and '.join(problems)}", way)
    return spare


def _size(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "one number"


def _belongs(name: str, wanted: Iterable[str]) -> bool:
    """Whether a weight lies within the network's own parts: one more of its layers, an adapter, a bias."""
    part = ".".join(name.split(".")[: 1 if name.startswith("lm_head") else 3]) + "."
    own = any(known.startswith(part) for known in wanted) and not name.endswith("inv_freq")
    return own or ".lora_" in name


def _wrapper(network: Any, spare: Iterable[str], missing: Iterable[str]) -> str | None:
    """What names begin with that would fit without it, such as `module.`."""
    split = {name: name.split(".") for name in spare}
    rests = {".".join(parts[count:]): name for name, parts in split.items() for count in (1, 2, 3)}
    lacking = set(missing)
    here = names_here(network, rests)
    fitting = [name.removesuffix(rest) for rest, name in rests.items() if here[rest] in lacking]
    return brief(min(fitting, key=len), 40) if fitting else None
