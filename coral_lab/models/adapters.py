"""LoRA adapters, merged when a checkpoint that holds one is loaded. (`training.lora` adds them.)"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from coral_lab.errors import require
from coral_lab.models.checkpoint_files import (
    brief,
    few,
    header,
    names_here,
    read_json,
    refuse_pointers,
    refused,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INSIDE = "base_model.model."
"""What peft puts before the names of the network."""


def base_of(folder: Path) -> str:
    """The checkpoint that the adapter in a folder was trained on. Raises CheckpointError if it names none, or
    is no LoRA adapter in safetensors.
    """
    require("peft", "train")
    refuse_pointers(folder)
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise refused(folder / CONFIG, f"has peft_type {config.get('peft_type')!r}", "only LORA is merged")
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise refused(folder / CONFIG, f"names no base model, but {base!r}", "set base_model_name_or_path")
    if not (folder / WEIGHTS).is_file():
        raise refused(folder / WEIGHTS, "is missing", "save the adapter with safetensors")
    header(folder / WEIGHTS)
    return base


def merged(network: torch.nn.Module, folder: Path) -> Any:
    """The network with an adapter's weights added to its own, whichever release of transformers named them.
    Raises CheckpointError for one that does not fit.
    """
    peft = require("peft", "train")
    names = _names(network, header(folder / WEIGHTS))
    way = "use the base it was trained on"
    try:
        config = peft.LoraConfig.from_pretrained(folder, local_files_only=True)
        config.inference_mode, config.base_model_name_or_path = True, None
        if any(old != new for old, new in names.items()):
            _name_as_here(config, network)
        model = peft.get_peft_model(network, config)
        wanted = set(peft.get_peft_model_state_dict(model))
        wrong = sorted(old for old, new in names.items() if new not in wanted)
        wrong += sorted(wanted - set(names.values()))
        if not wrong:
            weights = load_file(folder / WEIGHTS)
            peft.set_peft_model_state_dict(model, {new: weights[old] for old, new in names.items()})
            return model.merge_and_unload()
    except Exception as error:  # peft's own, of as many kinds as it has settings
        raise refused(folder, f"could not be merged: {brief(error)}", way) from error
    raise refused(folder, f"{len(wrong)} adapter weights do not fit its base ({few(wrong)})", way)


def _names(network: torch.nn.Module, saved: Iterable[str]) -> dict[str, str]:
    """What each saved weight is called in an adapter of this network."""
    inner = {name: name.removeprefix(INSIDE) for name in saved}
    here = names_here(network, inner.values())
    return {name: INSIDE + here[rest] if rest != name else name for name, rest in inner.items()}


def _name_as_here(config: Any, network: torch.nn.Module) -> None:
    """Let a config that was written for older names choose the same modules of this network, each with its
    rank and alpha.
    """
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    if config.target_modules in (None, "all-linear"):
        return
    old = _older_names(network)
    chosen = [name for name in old if check_target_module_exists(config, old[name])]
    if not chosen:  # it is written for the newer names, unlike its weights
        return
    for pattern in (config.rank_pattern, config.alpha_pattern):
        keys = {name: get_pattern_key(pattern.keys(), old[name]) for name in chosen} if pattern else {}
        found = {name: pattern[key] for name, key in keys.items() if key in pattern}
        pattern.clear()
        pattern.update(found)
    config.target_modules = set(chosen)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None


def _older_names(network: torch.nn.Module) -> dict[str, str]:
    """What every module was called up to transformers 4.51: the shorter name that is renamed to its own."""
    own = [name for name, _ in network.named_modules() if name]
    shorter = {
        name: {name.removeprefix("model."), name.replace(".language_model", "", 1)} - {name} for name in own
    }
    here = names_here(network, {old for names in shorter.values() for old in names})
    return {name: next((old for old in shorter[name] if here[old] == name), name) for name in own}
