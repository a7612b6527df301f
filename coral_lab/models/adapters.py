"""LoRA adapters, merged when a checkpoint that holds one is loaded. (`training.lora` adds them.)"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from coral_lab.errors import CheckpointError, require


def base_of(folder: Path) -> str:
    """The checkpoint that the adapter in a folder was trained on. Raises CheckpointError if it names none."""
    file = folder / "adapter_config.json"
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON ({error}); copy it again") from error
    if not base:
        raise CheckpointError(f"{file} names no base model; set base_model_name_or_path")
    return base


def merged(network: torch.nn.Module, folder: Path) -> Any:
    """The network with an adapter's weights added to its own. Raises CheckpointError for one that does not
    fit.
    """
    peft = require("peft", "train")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing; save the adapter with safetensors")
    model = peft.PeftModel.from_pretrained(network, folder, local_files_only=True)
    with safe_open(weights, "pt") as file:
        saved, wanted = set(file.keys()), set(peft.get_peft_model_state_dict(model))
    if saved != wanted:
        count = len(saved ^ wanted)
        raise CheckpointError(
            f"{folder}: {count} adapter weights do not fit its base; use the base it was trained on"
        )
    return model.merge_and_unload()
