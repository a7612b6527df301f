"""LoRA adapters, merged when a checkpoint that holds one is loaded. (`training.lora` adds them.)

An adapter is two thin matrices for each layer it is on, and merging adds their product to its weights; DoRA's
(arXiv 2402.09353) has lengths for the rows of the sum besides. That is done here, by the shapes that the
file's header says: no package looks for a base, runs a pattern over the network's names, or takes memory for
a rank that is only claimed.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from coral_lab.models.checkpoint_files import Shape, header, names_here
from coral_lab.models.folder_files import brief, few, look_over, read_json, refused

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INSIDE = "base_model.model."
"""What peft puts before the names of the network."""

OTHER_SUMS = (
    *("use_qalora", "use_bdlora", "lora_bias", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "megatron_config", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config"),
)
"""Fields of peft's that make of an adapter something else than LoRA, or name code that should read it."""

STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""How training may have begun: other ways change the base too."""

AGAIN = "save the adapter again with peft"
FITTING = "use the base it was trained on"


@dataclass(frozen=True)
class Lora:
    """What an adapter says, by the names in its file: rank and scale of each layer that it is on, of DoRA the
    name of its rows' lengths, and what is saved whole.
    """

    base: str
    rank: Mapping[str, int]
    scale: Mapping[str, float]
    lengths: Mapping[str, str]
    whole: tuple[str, ...]
    targets: tuple[str, ...] | None


def lora_of(folder: Path) -> Lora:
    """The adapter in a folder, its fields and its weights' shapes compared; nothing else is looked at. Raises
    CheckpointError if it names no base, is no LoRA adapter in safetensors, or does not say what it holds.
    """
    look_over(folder)
    config, file = read_json(folder / CONFIG), folder / CONFIG
    if config.get("peft_type") != "LORA":
        raise refused(
            file, f"has peft_type {brief(repr(config.get('peft_type')), 80)}", "only LORA is merged"
        )
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise refused(file, f"names no base model, but {base!r}", "set base_model_name_or_path")
    if not (folder / WEIGHTS).is_file():
        raise refused(folder / WEIGHTS, "is missing", "save the adapter with safetensors")
    try:
        _check_fields(config)
        shapes = header(folder / WEIGHTS)
        rank, scale = _ranks(config, shapes)
        lengths = _lengths(config, shapes, rank)
        # with these, names say only which layers may have been chosen
        fewer = any(config.get(name) for name in ("exclude_modules", "layers_to_transform", "layers_pattern"))
        targets = None if fewer else _texts(config, "target_modules")
        whole = _texts(config, "modules_to_save") or ()
    except ValueError as error:
        raise refused(file, brief(error), AGAIN) from None
    return Lora(base, rank, scale, lengths, whole, targets)


def _check_fields(config: Mapping[str, Any]) -> None:
    """Raises ValueError."""
    if other := [name for name in OTHER_SUMS if config.get(name)]:
        raise ValueError(f"sets {few(other)}, and only LoRA and DoRA are merged")
    if config.get("bias", "none") != "none":
        raise ValueError(f"has bias {brief(config['bias'], 60)!r}, wanted 'none'")
    start = config.get("init_lora_weights")
    if not any(start is known or (isinstance(start, str) and start == known) for known in STARTS):
        problem = f"has init_lora_weights {brief(start, 60)!r}, which changes the base"
        raise ValueError(
            f"{problem}: convert it to plain LoRA (peft's path_initial_model_for_weight_conversion)"
        )
    for name in ("use_rslora", "use_dora"):
        if not isinstance(config.get(name) or False, bool):
            raise ValueError(f"has {name} {brief(config[name], 60)!r}, wanted true or false")


def _texts(config: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """A list of names; None for a pattern, which is not run: the weights say which layers they are of."""
    found = config.get(name)
    if found is None or (isinstance(found, str) and name == "target_modules"):
        return None
    if not isinstance(found, list) or not all(isinstance(own, str) for own in found):
        raise ValueError(f"has {name} {brief(found, 60)!r}, wanted names")
    return tuple(found)


def _ranks(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> tuple[dict[str, int], dict[str, float]]:
    """Rank and scale of each layer, as the config says and the shapes confirm. Raises ValueError."""
    number, alpha = _number(config.get("r", 8), "r", int), _number(config.get("lora_alpha", 8), "lora_alpha")
    ranks, alphas = _pattern(config, "rank_pattern"), _pattern(config, "alpha_pattern")
    rank, scale = {}, {}
    for name, shape in shapes.items():
        layer, found, part = name.rpartition(".lora_")
        second = shapes.get(f"{layer}.lora_B.weight")
        if not found or part != "A.weight" or second is None:  # half of a layer fits nowhere
            continue
        inner = layer.removeprefix(INSIDE)
        wanted = _number(_chosen(ranks, inner, number), "rank_pattern", int)
        if len(shape) != 2 or len(second) != 2 or not shape[0] == second[1] == wanted:
            problem = f"says rank {wanted}, and lora_A and lora_B are {shape} and {second}"
            raise ValueError(f"{problem} in {brief(inner, 70)}")
        rank[layer] = wanted
        own = _number(_chosen(alphas, inner, alpha), "alpha_pattern")
        scale[layer] = own / (math.sqrt(wanted) if config.get("use_rslora") else wanted)
    if not rank:
        raise ValueError(f"says rank {number}, and {WEIGHTS} has no lora_A with its lora_B")
    return rank, scale


def _lengths(config: Mapping[str, Any], shapes: Mapping[str, Shape], layers: Iterable[str]) -> dict[str, str]:
    """What a DoRA adapter calls the lengths of each layer's rows. Raises ValueError for a layer without."""
    if not config.get("use_dora"):
        return {}
    found = {}
    for layer in layers:
        names = (f"{layer}.lora_magnitude_vector", f"{layer}.lora_magnitude_vector.weight")
        wanted = shapes[f"{layer}.lora_B.weight"][:1]
        own = next((name for name in names if shapes.get(name) == wanted), None)
        if own is None:
            inner = brief(layer.removeprefix(INSIDE), 70)
            raise ValueError(f"sets use_dora, and {WEIGHTS} has no {wanted[0]} magnitudes of {inner}")
        found[layer] = own
    return found


def _number(value: Any, name: str, kind: type = float) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    real = isinstance(value, float) and kind is float and 0 < value < 2**31
    if not (whole or real):
        raise ValueError(f"has {name} {brief(value, 60)!r}, wanted a positive number")
    return value


def _pattern(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Raises ValueError for patterns that repeat or choose, for those may take for ever."""
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"has {name} {brief(found, 60)!r}, wanted names and numbers")
    if odd := [key for key in found if not re.fullmatch(r"\^?[\w.\\-]{1,300}\$?", key)]:
        raise ValueError(f"has {name} {few(odd)}, wanted names of layers")
    return found


def _chosen(pattern: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    """What a pattern says of a layer: a key fits its whole name, or the end of it after a dot."""
    for key, value in pattern.items():
        plain = key.removesuffix("$").replace("\\.", ".")
        own = plain.removeprefix("^")
        if layer == own or (own == plain and layer.endswith(f".{own}")):
            return value
    return otherwise


@torch.no_grad()
def merged(network: torch.nn.Module, folder: Path, lora: Lora) -> Any:
    """The network with an adapter's weights added to its own, whichever release of transformers named them.
    Raises CheckpointError for one that does not fit.
    """
    shapes = header(folder / WEIGHTS)
    own, layers = network.state_dict(), dict(network.named_modules())
    inner = {name: name.removeprefix(INSIDE) for name in shapes}
    inner |= {name: f"{name.removeprefix(INSIDE)}.weight" for name in lora.rank}
    here = names_here(network, set(inner.values()))
    place = {name: here[inner[name]].removesuffix(".weight") for name in lora.rank}
    pairs = {f"{name}.lora_{part}.weight" for name in lora.rank for part in "AB"} | {*lora.lengths.values()}
    whole = {name: here[inner[name]] for name in shapes if name not in pairs}
    taken = list(place.values())
    wrong = [
        name
        for name, at in place.items()
        if taken.count(at) > 1 or not _fits(layers.get(at), name, shapes)  # a layer has one adapter
    ]
    for name, at in whole.items():
        if not (at in own and _saved_whole(at, lora) and shapes[name] == tuple(own[at].shape)):
            wrong.append(name)
    linear = [name for name, layer in layers.items() if isinstance(layer, torch.nn.Linear)]
    if wrong := sorted(wrong) or _lacking(linear, set(place.values()), lora):
        problem = f"{len(wrong)} adapter weights do not fit its base ({few(wrong)})"
        raise refused(folder, problem, FITTING)
    weights = load_file(folder / WEIGHTS)
    for name, at in whole.items():
        own[at].copy_(weights[name])
    for name, at in place.items():
        layer: Any = layers[at]
        first, second = (weights[f"{name}.lora_{part}.weight"].to(layer.weight.device) for part in "AB")
        layer.weight += second.float() @ first.float() * lora.scale[name]
        if name in lora.lengths:
            lengths = weights[lora.lengths[name]].to(layer.weight.device).float()
            layer.weight *= (lengths / layer.weight.float().norm(dim=1))[:, None]
    return network


def _fits(layer: Any, name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a layer is linear, and as wide as the two matrices."""
    size = (shapes[f"{name}.lora_B.weight"][0], shapes[f"{name}.lora_A.weight"][1])
    return isinstance(layer, torch.nn.Linear) and tuple(layer.weight.shape) == size


def _saved_whole(name: str, lora: Lora) -> bool:
    return any(name.endswith(f".{module}.weight") for module in lora.whole)


def _lacking(linear: Iterable[str], there: set[str], lora: Lora) -> list[str]:
    """What the targets, where these are names, say otherwise than the weights: layers without an adapter, and
    adapters of layers that are no target.
    """
    if lora.targets is None:
        return []
    chosen = {name: [target for target in lora.targets if _is_at(name, target)] for name in linear}
    holes = [name for name, targets in chosen.items() if bool(targets) > (name in there)]
    more = [name for name in there if not chosen.get(name)]
    return [*holes, *more]


def _is_at(name: str, target: str) -> bool:
    """Whether a layer's name, or the shorter one it had up to transformers 4.51, is or ends in a target."""
    shorter = (name.removeprefix("model."), name.replace(".language_model", "", 1))
    return any(own == target or own.endswith(f".{target}") for own in (name, *shorter))
