"""LoRA adapters to train instead of all parameters."""

from collections.abc import Sequence

import torch

from coral_lab.errors import require
from coral_lab.models.model import Model
from coral_lab.models.quantizing import check_whole

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of the text model, by the ends of their names."""


def add_lora(model: Model, rank: int = 16, seed: int = 0, targets: Sequence[str] = TARGETS) -> None:
    """Freeze the network and add LoRA adapters to linear layers of its text model, those in `targets` (peft's
    own defaults else). Adapters are float32, whatever the network is in.

    Raises ValueError for a quantised model, and for a target that the text model has no linear layer of.
    """
    check_whole(model.network, model.name, "given adapters")
    peft = require("peft", "train")
    text = model.network.model.language_model
    known = sorted(
        {name.rpartition(".")[2] for name, part in text.named_modules() if isinstance(part, torch.nn.Linear)}
    )
    if not targets or (other := [name for name in targets if name not in known]):
        said = ", ".join(other) if targets else "none"
        raise ValueError(f"LoRA's targets are {said}; the text model's linear layers are {', '.join(known)}")
    layers = rf".*language_model.*\.({'|'.join(targets)})"
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
    config.base_model_name_or_path = model.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.network.add_adapter(config)
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def freeze_vision(model: Model) -> None:
    """Let the vision tower stay as it is, with what hands its features on to the text model."""
    model.network.model.visual.requires_grad_(False)
