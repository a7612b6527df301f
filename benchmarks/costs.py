"""What one run over the whole of MERIT takes with the 3B, computed: products and queries encoded once each.

Operations are two for each weight of a linear layer and token or patch, and four for each pair of places that
attend to one another and each of a head's numbers; what several prompts share is counted every time. Tokens
are counted on the rehearsal's own texts, and every picture is taken to be a square of so many pixels, for
MERIT's sizes are not known here. This machine's FLOP/s are those that `rehearsal.py` measured; a GPU is taken
to reach 40% of the dense bfloat16 peak that its maker states (H100 SXM: 989 TFLOP/s, RTX 4090: 165).

python benchmarks/costs.py FOLDER       what `coral-lab rehearse` wrote; seconds
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from table import HERE, keep, row
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

import coral_lab as cl
from coral_lab.models.checkpoint_files import checked
from coral_lab.models.processors import processor_of
from coral_lab.prompts import parts
from coral_lab.query import Product

SIDES = (336, 672)  # pixels
SHARE = 0.4
PEAKS = {"one H100, 80 GB": 989e12, "one RTX 4090, 24 GB": 165e12}
SAMPLE = 500
TURNS = 21
"""Tokens of the system's turn and the headers, beside text and pictures."""


def linear_weights(part: nn.Module) -> int:
    return sum(own.weight.numel() for own in part.modules() if isinstance(own, nn.Linear))


class Costs:
    """Operations of a prompt by its tokens and pictures, for a checkpoint's config."""

    def __init__(self, folder: Path):
        config: Any = checked(folder).config
        with torch.device("meta"):
            network = Qwen2_5_VLForConditionalGeneration(config)
        self.text, self.vision = config.text_config, config.vision_config
        self.text_weights = linear_weights(network.model.language_model)
        self.merger_weights = linear_weights(network.model.visual.merger)
        self.vision_weights = linear_weights(network.model.visual) - self.merger_weights
        self.vision_weights += network.model.visual.patch_embed.proj.weight.numel()

    def picture(self, side: int) -> float:
        patches = (side // self.vision.patch_size) ** 2
        window = (self.vision.window_size // self.vision.patch_size) ** 2
        whole = len(self.vision.fullatt_block_indexes)
        seen = whole * patches + (self.vision.depth - whole) * min(window, patches)
        attention = 4 * patches * seen * self.vision.hidden_size
        return 2 * patches * (self.vision_weights + self.merger_weights / 4) + attention

    def prompt(self, tokens: float, pictures: float, side: int) -> float:
        tokens += pictures * (side // (2 * self.vision.patch_size)) ** 2
        attention = 4 * tokens * (tokens / 2) * self.text.hidden_size * self.text.num_hidden_layers
        return pictures * self.picture(side) + 2 * tokens * self.text_weights + attention


def counted(tokenizer, items) -> tuple[float, float]:
    """Mean tokens of the texts and mean number of pictures."""
    tokens = pictures = 0
    for item in items:
        own = parts(item)
        texts = [part for part in own if isinstance(part, str)]
        tokens += TURNS + sum(len(tokenizer(text)["input_ids"]) for text in texts)
        pictures += sum(isinstance(part, Product) for part in own)
    return tokens / len(items), pictures / len(items)


def main(folder: Path) -> list[dict]:
    shop, costs = cl.dataset(folder / "merit"), Costs(folder / "coral")
    tokenizer = processor_of(folder / "coral", checked(folder / "coral").config).tokenizer
    means = {
        "product": counted(tokenizer, shop.products[:SAMPLE]),
        "query": counted(tokenizer, shop.queries[:SAMPLE]),
    }
    measured = pd.read_csv(HERE / "rehearsal.csv")
    own = measured[measured["what"].str.fullmatch(r"encode in \w+: GFLOP/s")].iloc[0]
    rates = {own["machine"]: own["median"] * 1e9} | {name: SHARE * peak for name, peak in PEAKS.items()}
    rows = [row(f"tokens of a {kind}'s texts", [tokens]) for kind, (tokens, _) in means.items()]
    rows.append(row("pictures of a query", [means["query"][1]]))
    for side in SIDES:
        each = {kind: costs.prompt(*mean, side) for kind, mean in means.items()}
        whole = each["product"] * len(shop.products) + each["query"] * len(shop.queries)
        rows += [row(f"{side} px: TFLOP of a {kind}", [value / 1e12]) for kind, value in each.items()]
        rows.append(row(f"{side} px: PFLOP of the whole test split", [whole / 1e15]))
        rows += [row(f"{side} px: hours on {name}", [whole / rate / 3600]) for name, rate in rates.items()]
    return rows


if __name__ == "__main__":
    print(keep("costs", main(Path(sys.argv[1]))).to_string(index=False))
