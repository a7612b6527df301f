"""What int8 weights cost in cosine and R@1, and what they save in time and memory.

On coral-mini: all 3,000 test products and 2,000 test queries, with torchao's dynamic kind beside it. At the
3B's widths with random weights: one wide layer in each way, then four of its 36 text layers and four of its
32 vision layers. And the memory of the whole 3B, counted; with a folder of its size, measured. Writes
benchmarks/quantize.csv.

python benchmarks/quantize.py [mini] [other] [layer] [widths] [counted] [FOLDER]
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from table import keep, megabytes, ratios, row
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from coral_lab import Product, Settings, dataset, encode, load
from coral_lab.evaluation import measure
from coral_lab.metrics import estimate, paired_difference
from coral_lab.mini.architecture import untrained
from coral_lab.mini.recipe import corpus
from coral_lab.models import cpu_linear, embedding, quantizing, vision
from coral_lab.models.model import Model
from coral_lab.models.saving import save
from coral_lab.retrieval import Index

RUNS = 3
SIDE = 336  # pixels
UNKEPT = Settings(store="", progress=False)
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION = {
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
}
WAYS = {"float32": {"dtype": "float32"}, "int8": {"dtype": "float32", "quantize": "int8"}}
WAYS_TOO = {"bfloat16": {"dtype": "bfloat16"}}


def seconds(call: Callable) -> tuple[float, Any]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def dynamic(model: Model) -> Model:
    """The same model by torchao's Int8DynamicActivationInt8WeightConfig, in place."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    for module in model.network.model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = nn.Linear
    quantize_(model.network.model, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    return model


def mini() -> list[dict]:
    """coral-mini on MERIT-mini's test split, its pictures looked at before: what is timed is the network."""
    shop = dataset("mini")
    models = {way: load("mini", device="cpu", **options) for way, options in WAYS.items()}
    pictures = models["float32"].pixels
    for model in models.values():
        model.__dict__["pixels"] = pictures
    times: dict = {way: [] for way in models}
    embeddings: dict = {}
    for _ in range(RUNS - 1):  # half a minute each
        for way, model in models.items():
            taken, embeddings[way] = seconds(partial(encode, model, shop.products, settings=UNKEPT))
            times[way].append(taken)
    hits = {}
    for way, model in models.items():
        pool = Index(model, shop.products, embeddings[way], "seq", UNKEPT)
        hits[way] = measure(pool, shop.queries).per_query["R@1"].to_numpy(float)
    cosines = (embeddings["float32"] * embeddings["int8"]).sum(1)
    rows = [row(f"coral-mini, 3,000 products, {way}: s", values) for way, values in times.items()]
    rows += [
        row("coral-mini, int8 / float32, time", ratios(times["int8"], times["float32"])),
        row("coral-mini, int8: 1 - least cosine with float32", [1 - float(cosines.min())], "≤ 0.005"),
        row("coral-mini, int8: 1 - mean cosine with float32", [1 - float(cosines.mean())], "≤ 0.001"),
    ]
    rows += [_interval(f"coral-mini, R@1 of 2,000 queries, {way}", values) for way, values in hits.items()]
    found = paired_difference(hits["int8"], hits["float32"])
    changed = (hits["int8"] != hits["float32"]).mean()
    name = f"coral-mini, R@1, int8 - float32 (paired; p = {found.p:.2g}, {changed:.1%} of queries changed)"
    rows.append(row(name, [found.low, found.mean, found.high]) | {"runs": found.n})
    return rows


def other() -> list[dict]:
    """torchao's dynamic kind, which rounds what comes into a layer too."""
    some = dataset("mini").products[:300]
    models = {way: load("mini", device="cpu", **options) for way, options in WAYS.items()}
    models["dynamic"] = dynamic(load("mini", device="cpu"))
    times, embeddings = {}, {}
    for way, model in models.items():
        model.__dict__["pixels"] = models["float32"].pixels
        encode(model, some[:4], settings=UNKEPT)
        times[way], embeddings[way] = seconds(partial(encode, model, some, settings=UNKEPT))
    cosines = (embeddings["float32"] * embeddings["dynamic"]).sum(1)
    return [
        row("coral-mini, 300 products, torchao's dynamic / int8, time", [times["dynamic"] / times["int8"]]),
        row("coral-mini, 300 products, torchao's dynamic: 1 - least cosine", [1 - float(cosines.min())]),
        row("coral-mini, 300 products, torchao's dynamic: 1 - mean cosine", [1 - float(cosines.mean())]),
    ]


def _interval(name: str, values: np.ndarray) -> dict:
    """Mean and 95% interval over queries."""
    found = estimate(values)
    return row(name, [found.low, found.mean, found.high]) | {"median": found.mean, "runs": found.n}


@torch.inference_mode()
def layer(tokens: int = 200) -> list[dict]:
    """One of the 3B's wide layers, 2048 → 11008, on the tokens of one product."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    plain = nn.Linear(2048, 11_008, bias=False)
    rows = torch.randn(tokens, 2048)
    calls: dict[str, Callable] = {"float32": partial(cpu_linear.linear, rows, plain.weight)}
    half = plain.weight.bfloat16()
    calls["bfloat16"] = partial(cpu_linear.linear, rows.bfloat16(), half)
    for name, config in {
        "int8, by blocks": Int8WeightOnlyConfig(set_inductor_config=False),
        "int8, by torchao": Int8WeightOnlyConfig(set_inductor_config=False),
        "torchao's dynamic int8": Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
    }.items():
        own = nn.Linear(2048, 11_008, bias=False)
        own.weight = nn.Parameter(plain.weight.clone(), requires_grad=False)
        quantize_(own, config)
        own.__class__ = quantizing.Int8Linear if name == "int8, by blocks" else nn.Linear
        calls[name] = partial(own, rows)
    times: dict = {name: [] for name in calls}
    for run in range(RUNS + 1):
        for name, call in calls.items():
            taken, _ = seconds(call)
            times[name] += [1000 * taken] if run else []
    return [row(f"2048 → 11008, {tokens} tokens, {name}: ms", values) for name, values in times.items()]


def widths(text_layers: int = 4, vision_layers: int = 4) -> list[dict]:
    """Layers of the 3B's widths; each way in a process of its own, so that its memory can be seen."""
    text = TEXT | {"num_hidden_layers": text_layers}
    seeing = VISION | {"depth": vision_layers, "fullatt_block_indexes": [vision_layers - 1]}
    with tempfile.TemporaryDirectory() as folder:
        model = untrained(corpus(dataset("mini"), limit=200), text=text, vision=seeing)
        model.network.to(torch.bfloat16)
        model.processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 12_845_056}
        save(model, folder)
        del model
        found = {way: _apart(Path(folder), way, RUNS if way in WAYS else 1) for way in (*WAYS, *WAYS_TOO)}
    return _rows(f"3B's widths, {text_layers} + {vision_layers} layers", found)


def _rows(name: str, found: dict[str, dict]) -> list[dict]:
    rows = []
    for way, own in found.items():
        rows += [
            row(f"{name}, {way}: memory after loading, mapped weights too, MB", [own["after"]]),
            row(f"{name}, {way}: most memory while loading, without mapped pages, MB", [own["most"]]),
            row(f"{name}, {way}: s to load", [own["load"]]),
            row(f"{name}, {way}: s a product", own["times"]),
        ]
    base = next(iter(found))
    for way in [way for way in found if way != base]:
        cosines = (np.array(found[base]["embeddings"]) * np.array(found[way]["embeddings"])).sum(1)
        rows.append(row(f"{name}, {way}: 1 - least cosine with {base}", [1 - float(cosines.min())]))
    return rows


def _apart(folder: Path, way: str, runs: int) -> dict:
    code = f"import quantize; quantize.one({str(folder)!r}, {way!r}, {runs})"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def watched() -> Iterator[list[float]]:
    """Memory of this process every 5 ms, in MB, without pages of mapped files (the checkpoint is one)."""
    seen, over = [megabytes("RssAnon")], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            seen.append(megabytes("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    yield seen
    over.set()
    thread.join()


def one(folder: str, way: str, runs: int = RUNS) -> None:
    """Load a folder one way and encode two products one by one; prints what was seen as JSON."""
    random = np.random.default_rng(0)
    noise = [random.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(2)]
    pictures = [Image.fromarray(own).resize((SIDE, SIDE), Image.NEAREST) for own in noise]
    titles = [product.title for product in dataset("mini").products[:2]]
    own = [Product(f"p{i}", titles[i], pictures[i], "bag") for i in range(2)]
    load("mini", device="cpu", **(WAYS | WAYS_TOO)[way])  # what any load takes: packages, and a first model
    before, mapped = megabytes("RssAnon"), megabytes("RssFile")
    with watched() as seen:
        taken, model = seconds(partial(load, folder, device="cpu", **(WAYS | WAYS_TOO)[way]))
    facts = {"load": taken, "most": max(seen) - before, "after": megabytes("RssAnon") - before}
    embeddings = [encode(model, item, settings=UNKEPT)[0].tolist() for item in own]
    facts["after"] += megabytes("RssFile") - mapped  # pages are read when they are used
    times = []
    for _ in range(runs):
        times += [seconds(partial(encode, model, item, settings=UNKEPT))[0] for item in own]
    print(json.dumps(facts | {"times": times, "embeddings": embeddings}))


def counted() -> list[dict]:
    """Memory of the whole 3B, and of its largest batch on a card, in GB (10^9 bytes)."""
    config: Any = Qwen2_5_VLConfig(
        text_config=TEXT | {"num_hidden_layers": 36, "vocab_size": 151_936, "tie_word_embeddings": True},
        vision_config=VISION | {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        network: Any = Qwen2_5_VLForConditionalGeneration(config)
    layers = [own for own in network.model.modules() if isinstance(own, nn.Linear)]
    inside, outputs = sum(own.weight.numel() for own in layers), sum(own.out_features for own in layers)
    rest = sum(own.numel() for own in network.model.parameters()) - inside
    weights = {
        "float32": 4 * (inside + rest),
        "bfloat16": 2 * (inside + rest),
        "int8, the rest in bfloat16": inside + 5 * outputs + 2 * rest,  # a float32 scale and a zero each
        "int8, the rest in float32": inside + 5 * outputs + 4 * rest,
    }
    # In bfloat16, what lives at once: in a text layer gate, up and their product, six states, and the keys
    # and values of all 36; in a vision layer gate, up and their product, six states, and the patches.
    text = embedding.TOKENS * 2 * (3 * 11_008 + 6 * 2048 + 36 * 2 * 256)
    seeing = vision.PATCHES * (2 * (3 * 3420 + 6 * 1280) + 4 * 1176)
    largest = 2 * 11_008 * 2048  # a layer's weight as bfloat16, while it is multiplied
    batch = max(text, seeing)
    rows = [row(f"3B, weights in {name}: GB", [size / 1e9]) for name, size in weights.items()]
    rows.append(
        row(f"3B, a batch of {embedding.TOKENS:,} tokens or {vision.PATCHES:,} patches: GB", [batch / 1e9])
    )
    for name in ("bfloat16", "int8, the rest in bfloat16"):
        most = weights[name] + batch + (largest if name.startswith("int8") else 0)
        rows.append(row(f"3B on a card, {name}, with such a batch: GB", [most / 1e9], "≤ 11"))
    return rows


def whole(folder: str) -> list[dict]:
    """A checkpoint of the 3B's size, in int8."""
    return _rows(f"3B, all layers, {SIDE} px", {"int8": _apart(Path(folder), "int8", 1)})


PARTS = {"mini": mini, "other": other, "layer": layer, "widths": widths, "counted": counted}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        found = PARTS[part]() if part in PARTS else whole(part)
        print(keep("quantize", found).to_string(index=False))
