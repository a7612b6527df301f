"""LoRA adapters to train instead of all parameters."""

import torch

from coral_lab.errors import require
from coral_lab.models.loading import Model
from coral_lab.models.quantizing import check_whole


def add_lora(model: Model, rank: int = 16, seed: int = 0) -> None:
    """Freeze the network and add LoRA adapters to every linear layer of its text model (peft's own defaults
    else). Raises ValueError for a quantised model.
    """
    check_whole(model.network, model.name, "given adapters")
    peft = require("peft", "train")
    layers = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=rf".*language_model.*\.({layers})")
    config.base_model_name_or_path = model.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.network.add_adapter(config)
