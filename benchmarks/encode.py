"""encode against the model card's code and sentence-transformers, and against the bare products of its linear
layers.

Twelve products and twelve queries that show two of them each, pictures of 280 to 448 pixels, on a Qwen2.5-VL
with random weights: 12 text layers, 8 vision layers, the real vocabulary's size. Writes
benchmarks/encode.csv.

python benchmarks/encode.py
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from sentence_transformers import SentenceTransformer
from table import keep, profiled, ratios, row
from torch.nn.functional import normalize
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from coral_lab import Condition, Product, Query, Settings, dataset, encode, load, messages
from coral_lab.mini.architecture import untrained
from coral_lab.mini.recipe import corpus
from coral_lab.models.cpu_linear import linear
from coral_lab.models.model import Model
from coral_lab.models.saving import save

RUNS = 5
SIZES = (280, 308, 336, 364, 392, 420, 448)  # pixels a side
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A Qwen2.5-VL with random weights that a laptop can run; vocabulary, head sizes and the share of
    windowed layers are the 3B's.
    """
    text = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 8,
        "hidden_size": 320,
        "intermediate_size": 856,
        "num_heads": 4,
        "out_hidden_size": 512,
        "fullatt_block_indexes": [7],
    }
    model = untrained(corpus(dataset("mini"), limit=200), text=text, vision=vision)
    with torch.no_grad():  # scaled up, so that different inputs give clearly different embeddings
        for parameter in model.network.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    model.network.to(dtype)
    model.processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 12_845_056}
    save(model, folder)
    return folder


def picture(seed: int) -> Image.Image:
    """Coarse coloured noise, 280 to 448 pixels a side."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(tuple(random.choice(SIZES, 2).tolist()), Image.NEAREST)


def products(count: int, first: int = 0) -> list[Product]:
    """Products of MERIT-mini with pictures of a shop's size."""
    own = dataset("mini").products
    return [
        Product(own[i].id, own[i].title, picture(i), own[i].class_name) for i in range(first, first + count)
    ]


def items() -> list[Product | Query]:
    """Twelve products, and twelve queries of two conditions over them."""
    shown = products(12)
    queries = [
        Query(
            f"q{i}",
            shown[i].class_name,
            (Condition("color", shown[i]), Condition("brand", shown[(5 * i + 1) % 12])),
        )
        for i in range(12)
    ]
    return shown + queries


def card(network, processor, conversations) -> np.ndarray:
    """The model card's code, one by one."""
    rows = []
    for conversation in conversations:
        text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        images, videos = process_vision_info(conversation)
        inputs = processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt")
        with torch.inference_mode():
            outputs = network(**inputs, return_dict=True, output_hidden_states=True)
            embedding = outputs.hidden_states[-1][:, -1, :]
            rows.append(normalize(embedding, dim=-1).float())
    return torch.cat(rows).numpy()


def ours(model: Model, own) -> np.ndarray:
    """`encode`, with no picture kept from the run before."""
    model.__dict__.pop("pixels", None)
    return encode(model, own, settings=Settings(store="", progress=False))


def seconds(call: Callable) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def products_of_matrices(model: Model, own) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """An input [token, in] and the weight [out, in] of each linear layer that `encode` runs, time and
    again.
    """
    shapes, inputs = [], {}
    hooks = [
        module.register_forward_hook(
            lambda m, args, _: shapes.append((args[0].numel() // m.in_features, m.weight))
        )
        for module in model.network.model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    ours(model, own)
    for hook in hooks:
        hook.remove()
    for count, weight in shapes:
        inputs.setdefault((count, weight.shape[1]), torch.randn(count, weight.shape[1], dtype=weight.dtype))
    return [(inputs[count, weight.shape[1]], weight.detach()) for count, weight in shapes]


@torch.inference_mode()
def multiply(pairs) -> None:
    for tokens, weight in pairs:
        linear(tokens, weight)


def peers(folder: Path, own) -> dict[tuple[str, str], Callable]:
    """What embeds the items, by code and dtype, each loaded and run once on a few."""
    conversations, processor, found = (
        [messages(item) for item in own],
        AutoProcessor.from_pretrained(folder),
        {},
    )
    for name, dtype in DTYPES.items():
        network = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        transformer = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
        model = load(folder, dtype=dtype)
        found["card", name] = partial(card, network, processor)
        found["sentence-transformers", name] = partial(transformer.encode, batch_size=8)
        found["encode", name] = partial(ours, model)
        pairs = products_of_matrices(model, own)
        found["matrix products", name] = lambda _, pairs=pairs: multiply(pairs)
        found["gigaflop", name] = sum(2 * tokens.numel() * len(weight) for tokens, weight in pairs) / 1e9
        for code in ("card", "sentence-transformers", "encode"):
            found[code, name](conversations[-2:])
    return found


def main() -> list[dict]:
    own = items()
    conversations = [messages(item) for item in own]
    with tempfile.TemporaryDirectory() as folder:
        found = peers(checkpoint(Path(folder)), own)
    for name in DTYPES:
        with profiled(f"encode {name}"):
            found["encode", name](own)
    work = {name: found.pop(("gigaflop", name)) for name in DTYPES}
    times: dict = {peer: [] for peer in found}
    embeddings = {}
    for _ in range(RUNS):
        for peer, call in found.items():
            taken, embeddings[peer] = seconds(partial(call, own if peer[0] == "encode" else conversations))
            times[peer].append(taken)
    rows = [row(f"{code}, {name}: s", values) for (code, name), values in times.items()]
    for name in DTYPES:
        mine = times["encode", name]
        rows += [
            row(f"card / encode, both {name}", ratios(times["card", name], mine), "≥ 4.5"),
            row(
                f"sentence-transformers / encode, both {name}",
                ratios(times["sentence-transformers", name], mine),
                "≥ 2.5",
            ),
            row(
                f"share of bare matrix products' FLOP/s, {name}",
                ratios(times["matrix products", name], mine),
                "≥ 0.55",
            ),
            row(f"encode, {name}: GFLOP/s in linear layers", [work[name] / taken for taken in mine]),
        ]
    half, theirs = times["encode", "bfloat16"], embeddings["card", "float32"]
    cosines = (embeddings["encode", "bfloat16"] * theirs).sum(1)
    return [
        *rows,
        row("card in float32 / encode in bfloat16", ratios(times["card", "float32"], half), "≥ 9"),
        row(
            "sentence-transformers in float32 / encode in bfloat16",
            ratios(times["sentence-transformers", "float32"], half),
            "≥ 4",
        ),
        row(
            "largest difference from the card, float32",
            [float(abs(embeddings["encode", "float32"] - theirs).max())],
            "< 1e-5",
        ),
        row("least cosine with the card's float32, bfloat16", [float(cosines.min())], "≥ 0.999"),
    ]


if __name__ == "__main__":
    print(keep("encode", main()).to_string(index=False))
