"""What is asked of a device about loading and encoding; `device_check.py` runs it."""

import platform
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from qwen_vl_utils import process_vision_info
from torch.nn.functional import normalize

from coral_lab.models.loading import load_network
from coral_lab.models.model import Model
from coral_lab.models.saving import save
from coral_lab.prompts import messages
from coral_lab.replication.cells import provenance
from coral_lab.replication.device_bench import (
    COSINE,
    Bench,
    Figure,
    built,
    counted,
    embeddings,
    free,
    held,
    least_cosine,
    memory,
    peak,
    products,
    said,
    timed,
    with_queries,
)

NEEDED = ("torch", "torchvision", "transformers", "tokenizers", "qwen-vl-utils", "safetensors")
OPTIONAL = {
    "accelerate": "weights go over the CPU",
    "flash-attn": "no rows of FlashAttention 2",
    "sentence-transformers": "no rows of it",
    "peft": "no rows of LoRA",
}


def facts(bench: Bench) -> Iterator[Figure]:
    """The device, and what runs on it."""
    device = bench.device
    yield Figure("device", bench.name)
    if bench.is_cuda:
        properties = torch.cuda.get_device_properties(device)
        yield Figure("memory of the device", properties.total_memory / 1e9, "GB")
        yield Figure("compute capability", f"{properties.major}.{properties.minor}")
        yield Figure("CUDA", str(torch.version.cuda), why=f"cuDNN {torch.backends.cudnn.version()}")
    yield Figure("Python", platform.python_version())
    yield Figure("coral_lab", provenance()["commit"])
    for package in NEEDED:
        yield Figure(f"package {package}", _version(package) or "here")
    for package, without in OPTIONAL.items():
        why = "" if _version(package) else f"not installed: {without}"
        yield Figure(f"package {package}", _version(package), why=why)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ones = torch.ones(8, 8, device=device, dtype=dtype)
        good = bool((ones @ ones == 8).all())
        yield Figure(f"products in {_short(dtype)}", float(good), "share", at_least=1)
    if bench.is_cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Figure("bfloat16 by the device itself", "yes" if native else "no")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def small_checkpoint(bench: Bench) -> Iterator[Figure]:
    """Written and loaded in float32, and whether this transformers gets the quick path."""
    yield from _through_the_disk(bench, "small", bench.small)
    with said() as lines:
        quick = bench.load(bench.small, "float32").quick
    yield Figure("quick path", "yes" if quick else "no", why="; ".join(dict.fromkeys(lines)))


def full_checkpoint(bench: Bench) -> Iterator[Figure]:
    """The 3B's exact shape, written and loaded in bfloat16."""
    if not bench.is_large:
        yield Figure("3b: checkpoint", None, why="only with size 3b")
        return
    space = shutil.disk_usage(bench.folder).free
    if space < 9e9:
        raise OSError(f"{bench.folder} has {space / 1e9:.1f} GB free and 9 are needed; set TMPDIR elsewhere")
    yield from _through_the_disk(bench, bench.size, bench.main)


def _through_the_disk(bench: Bench, size: str, folder: Path) -> Iterator[Figure]:
    """A model made on the device, saved, and loaded again: the same embeddings."""
    own = with_queries(products(3), 1)
    seconds, model = timed(bench.device, lambda: built(bench.device, size))
    millions = sum(p.numel() for p in model.network.parameters()) / 1e6
    yield Figure(f"{size}: parameters", millions, "million")
    yield Figure(f"{size}: made on the device", seconds, "s")
    expected, dtype = embeddings(model, own), _short(model.dtype)
    seconds, _ = timed(bench.device, lambda: save(model, folder))
    del model
    free(bench.device)
    yield Figure(f"{size}: saved", seconds, "s")
    files = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    yield Figure(f"{size}: weights on disk", files / 1e9, "GB")
    before = held(bench.device) or 0.0
    seconds, model = timed(bench.device, lambda: bench.load(folder, dtype))
    taken = held(bench.device)
    yield Figure(f"{size}: loaded by cl.load", seconds, "s", why=f"{dtype}, {model.attention}")
    yield memory(f"{size}: weights in memory", None if taken is None else taken - before)
    found = embeddings(model, own)
    if dtype == "float32":
        apart = float(np.abs(found - expected).max())
        yield Figure(f"{size}: loaded and saved apart", apart, below=1e-5)
    else:
        yield Figure(f"{size}: loaded and saved, cosine", least_cosine(found, expected), at_least=COSINE)


def attentions(bench: Bench) -> Iterator[Figure]:
    """In bfloat16 with SDPA, and with FlashAttention 2 where it is."""
    own, expected = with_queries(products(2), 1), None
    for name, kind in {"SDPA": "sdpa", "FlashAttention 2": "flash_attention_2"}.items():
        if kind != "sdpa" and not (bench.is_cuda and find_spec("flash_attn")):
            why = "flash-attn is not installed" if bench.is_cuda else "it is for CUDA"
            yield Figure(f"{name}: load", None, why=why)
            continue
        free(bench.device)
        seconds, model = timed(bench.device, partial(bench.load, bench.main, "bfloat16", kind))
        yield Figure(f"{name}: load", seconds, "s", why=f"bfloat16, {model.attention}")
        yield memory(f"{name}: weights", held(bench.device))
        embeddings(model, own)
        seconds, found = timed(bench.device, partial(embeddings, model, own))
        yield Figure(f"{name}: {len(own)} items", seconds, "s")
        yield memory(f"{name}: peak", peak(bench.device))
        if expected is None:
            expected = found
        else:
            yield Figure(f"{name}: cosine with SDPA", least_cosine(found, expected), at_least=COSINE)
        del model


def parity_with_cpu(bench: Bench) -> Iterator[Figure]:
    """At the small size, against transformers' plain forward in float32 on the CPU."""
    own = with_queries(products(3), 2)
    plain = load_network(bench.small, device="cpu", dtype="float32", attention="sdpa", quick=False)
    expected = embeddings(plain, own)
    found = embeddings(bench.load(bench.small, "float32"), own)
    why = "TF32 off; the CPU by transformers' public names alone"
    yield Figure("float32: apart from the CPU", float(np.abs(found - expected).max()), below=1e-4, why=why)
    found = embeddings(bench.load(bench.small, "bfloat16"), own)
    yield Figure("bfloat16: cosine with float32 on the CPU", least_cosine(found, expected), at_least=0.99)


def card(model: Model, conversations: Sequence) -> tuple[Float[np.ndarray, "item dim"], int]:
    """The model card's code, one by one, and how many tokens it read."""
    rows, tokens = [], 0
    for conversation in conversations:
        text = model.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        images, videos = process_vision_info(conversation)
        inputs = model.processor(text=[text], images=images, videos=videos, padding=True, return_tensors="pt")
        tokens += inputs["input_ids"].numel()
        with torch.inference_mode():
            network: Any = model.network
            output = network(**inputs.to(model.device), return_dict=True, output_hidden_states=True)
            rows.append(normalize(output.hidden_states[-1][:, -1, :], dim=-1).float().cpu())
    return torch.cat(rows).numpy(), tokens


def throughput_of_products(bench: Bench) -> Iterator[Figure]:
    """Different pictures, so that nothing but the beginning is shared."""
    yield from _throughput(bench, "products", products(72 if bench.is_cuda else 3), 1.0)


def throughput_of_queries(bench: Bench) -> Iterator[Figure]:
    """Queries over products that are in the pool, whose pictures are looked at once."""
    shown = products(48 if bench.is_cuda else 2)
    yield from _throughput(bench, "pool and queries", with_queries(shown, len(shown) // 2), 1.3)


def _throughput(bench: Bench, what: str, items: Sequence, ratio: float) -> Iterator[Figure]:
    """`encode`, the card's loop and sentence-transformers, one after the other on the same items, in
    bfloat16. Small shapes say nothing about CORAL: only of the 3B's on a GPU is a `ratio` wanted.
    """
    chats = [messages(item) for item in items]
    judged = ratio if bench.is_large and bench.is_cuda else None
    model = bench.load(bench.main, "bfloat16", quick=False)
    loop_seconds, (expected, tokens), work = _measured(bench, model.network, partial(card, model, chats))
    del model
    yield from _rates(f"{what}, card's loop", len(items), tokens, work, loop_seconds)
    free(bench.device)
    model = bench.load(bench.main, "bfloat16")
    seconds, found, work = _measured(bench, model.network, partial(embeddings, model, items))
    del model
    yield from _rates(f"{what}, encode", len(items), tokens, work, seconds)
    yield Figure(f"{what}, encode / card's loop", loop_seconds / seconds, "times", at_least=judged)
    yield Figure(f"{what}, cosine with the card's", least_cosine(found, expected), at_least=COSINE)
    free(bench.device)
    if find_spec("sentence_transformers") is None:
        why = "sentence-transformers is not installed"
        yield Figure(f"{what}, sentence-transformers", None, why=why)
        return
    network, call = _sentence_transformers(bench, chats)
    peer_seconds, _, work = _measured(bench, network, call)
    del network, call
    yield from _rates(f"{what}, sentence-transformers", len(items), tokens, work, peer_seconds)
    least = None if judged is None else 1.0
    name = f"{what}, encode / sentence-transformers"
    yield Figure(name, peer_seconds / seconds, "times", at_least=least)


def _sentence_transformers(bench: Bench, chats: Sequence) -> tuple[Any, Callable]:
    from sentence_transformers import SentenceTransformer

    options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    model = SentenceTransformer(str(bench.main), device=str(bench.device), model_kwargs=options)
    return model, lambda: model.encode(chats, batch_size=32, show_progress_bar=False)


def _measured(bench: Bench, network: Any, call: Callable) -> tuple[float, Any, int]:
    """Median seconds of three calls, of one on a CPU, after one that warms up; what that returned, and the
    floating-point operations of its linear layers.
    """
    with counted(network) as operations:
        found = call()
    runs = 3 if bench.is_cuda else 1
    seconds = [timed(bench.device, call)[0] for _ in range(runs)]
    return statistics.median(seconds), found, sum(operations)


def _rates(what: str, items: int, tokens: int, work: int, seconds: float) -> Iterator[Figure]:
    yield Figure(f"{what}: items", items / seconds, "1/s", why=f"{items} items in {seconds:.3g} s")
    yield Figure(f"{what}: tokens", tokens / seconds, "1/s", why=f"{tokens:,} as the card reads them")
    yield Figure(f"{what}: work in linear layers", work / seconds / 1e12, "TFLOP/s")
