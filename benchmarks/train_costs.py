"""What training the 3B on MERIT takes, computed: operations, hours and memory of each ready configuration.

Operations are counted as in `costs.py`, for a pair: a query and its answer. Going back takes twice what going
forward does, and as much where weights are frozen, for then gradients are only passed on. Gradient
checkpointing goes forward once more, and so does GradCache, which keeps the pictures' features where the
vision tower is frozen. Texts are those of MERIT-mini's training queries, in tokens of data/coral-mini, whose
vocabulary is made for them. Every picture is taken to be a square of 448 px.

A GPU is taken to reach 40% of the dense bfloat16 peak that its maker states, as in `costs.py`, or 25% or 50%,
and eight of them eight times as much; opening pictures and what GPUs tell one another are taken to keep up.
Memory is that of the tensors, without what CUDA and the allocator take. Nothing here was measured on a GPU.

python benchmarks/train_costs.py       half a minute; needs nothing but this repository
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import peft
import torch
from costs import PEAKS, SHARE, TURNS, Costs, counted, linear_weights
from table import HERE, keep, row
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import coral_lab as cl
from coral_lab.mini.rehearsal_checkpoint import SHAPE
from coral_lab.sources.package_files import shipped
from coral_lab.training.batches import AHEAD
from coral_lab.training.held_out import POOL
from coral_lab.training.learner import ROWS
from coral_lab.training.lora import TARGETS
from coral_lab.training.reconstruction import CORAL, Decoders

SIDE, SAMPLE = 448, 500  # pixels; queries and products that are counted
EPOCH = 310_000
"""Queries of MERIT's training split (arXiv 2506.03144)."""

SHARES = (0.25, SHARE, 0.5)
CONFIGURATIONS = {"lora-24gb": (1, 24), "lora-80gb-1024": (1, 80), "full-8x80gb": (8, 80)}
"""The processes that each is for, and the GB of each one's card."""

INSIDE, KEPT = (14, 35), (8, 29)
"""Bytes a token, for each of a layer's inner and outer width, in bfloat16: while the layer is worked out
again for its gradients, and what it keeps between the passes without gradient checkpointing. Held against
torch's own count by `traced`.
"""

DECODING, WORD = 80, 14
"""Bytes of a decoder for each place and each of its width; and for each word that is asked for and each of
the vocabulary, whose scores are there in bfloat16 and float32, as logarithms and as gradients.
"""


@dataclass(frozen=True)
class Means:
    """Of a pair: tokens of the query's and of the product's texts, and pictures of the query; a product has
    one. Pictures are squares of `side` pixels.
    """

    query: float
    product: float
    pictures: float
    side: int = SIDE

    @property
    def words(self) -> float:
        """Tokens of the product that can be hidden, beside its picture's."""
        return self.product - TURNS

    @property
    def shown(self) -> float:
        return self.pictures + 1


class Sizes(Costs):
    """Operations of a prompt, as `costs.py` counts them, and numbers of parameters, for a config that need
    not be in a checkpoint's folder.
    """

    def __init__(self, config: Any):
        with torch.device("meta"):
            network = Qwen2_5_VLForConditionalGeneration(config)
            decoders = Decoders(config.text_config.hidden_size, CORAL)
        text, visual = network.model.language_model, network.model.visual
        self.text, self.vision = config.text_config, config.vision_config
        self.text_weights, self.merger_weights = linear_weights(text), linear_weights(visual.merger)
        self.vision_weights = linear_weights(visual) - self.merger_weights
        self.vision_weights += visual.patch_embed.proj.weight.numel()
        self.all, self.decoders = _count(network), _count(decoders)
        self.layer = max(_count(text.layers[0]), _count(visual.blocks[0]))
        self.outside = _count(text.embed_tokens) + _count(visual.merger) + _count(visual.patch_embed)
        linear = {name: own for name, own in text.named_modules() if isinstance(own, nn.Linear)}
        self.widths = sum(sum(own.weight.shape) for name, own in linear.items() if name.endswith(TARGETS))

    def adapters(self, rank: int) -> int:
        return rank * self.widths

    def patches(self, means: Means) -> int:
        """Of a picture, in the vision tower."""
        return (means.side // self.vision.patch_size) ** 2

    def features(self, means: Means) -> float:
        """Of a picture, in the text model."""
        return self.patches(means) / self.vision.spatial_merge_size**2

    def tokens(self, means: Means) -> tuple[float, float]:
        """Of a query and of a product, pictures included."""
        each = self.features(means)
        return means.query + means.pictures * each, means.product + each


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def step_of(sizes: Sizes, means: Means, lora: int = 0) -> dict[str, float]:
    """Operations of a training step for a pair, by what they are for, with Coral's decoders, GradCache and
    gradient checkpointing; adapters of rank `lora` learn, or all parameters.
    """
    own, width = sizes.tokens(means), sizes.text.hidden_size
    adapters = 2 * sum(own) * sizes.adapters(lora)
    text = sum(sizes.prompt(tokens, 0, means.side) for tokens in own) + adapters
    vision = means.shown * sizes.picture(means.side)
    again = text if lora else text + vision
    back = text + adapters if lora else 2 * (text + vision)
    # Two decoders, each for L_reg and for L_rec: 4 width² weights of attention, 8 after it, 1 at the end.
    decoders = 4 * 2 * (means.words + sizes.features(means)) * 13 * width**2
    words = 2 * 2 * means.words / 2 * width * sizes.text.vocab_size
    return {
        "forward": text + vision,
        "GradCache's first pass": again,
        "gradient checkpointing": again,
        "backward": back,
        "decoders, all of it": 3 * decoders + (2 if lora else 3) * words,
    }


def memory_of(
    sizes: Sizes,
    means: Means,
    *,
    batch_size: int,
    chunk: int | None = None,
    lora: int = 0,
    processes: int = 1,
    shard: bool = False,
    checkpointing: bool = False,
    dtype: str = "float32",
    precision: str = "float32",
    rebuilds: bool = True,
) -> dict[str, float]:
    """GB (1e9 bytes) on one device by what takes them, when a step takes the most.

    The inside of a layer, and the decoders' states with the words' scores, are not there at once: only what
    is larger is named. (Many parameters: they are the command's options.)
    """
    half, heads = precision == "bfloat16", sizes.decoders * rebuilds
    learning = (sizes.adapters(lora) if lora else sizes.all) + heads
    parts, own = processes if shard else 1, batch_size // processes
    rows = min(own, chunk or own)
    wide = 2 if dtype == "bfloat16" or (shard and half) else 4  # bytes of a state between layers
    stored = 2 if dtype == "bfloat16" else 4
    found = {"weights": sizes.all * stored / parts}
    if lora:
        found["adapters"] = sizes.adapters(lora) * 4 / parts
    if heads:
        found["decoders"] = heads * 4 / parts
    found |= {"gradients": learning * 4 / parts, "Adam's two moments": learning * 8 / parts}
    if (
        shard
    ):  # what is outside the layers and two layers, whole, and a gradient of the first before it is cut
        found["parameters put together"] = (sizes.outside + 2 * sizes.layer) * (2 if half else 4)
        found["gradients put together"] = 0 if lora else sizes.outside * 4
    elif half:
        found["what learns, in bfloat16"] = learning * 2
    if lora:  # of the whole share of a batch, for the second pass
        found["features of pictures"] = (
            own * means.shown * sizes.features(means) * sizes.text.hidden_size * wide
        )
    query, product = sizes.tokens(means)
    read = {"text": (rows * (query + product), sizes.text.num_hidden_layers, sizes.text)}
    if not lora:
        read["vision"] = rows * means.shown * sizes.patches(means), sizes.vision.depth, sizes.vision
    inside = []
    for kind, (places, layers, widths) in read.items():
        within, kept = _bytes(INSIDE, widths, half), _bytes(KEPT, widths, half)
        each = wide * widths.hidden_size if checkpointing else kept
        found[f"states {'between' if checkpointing else 'of'} {kind} layers"] = places * layers * each
        together = min(rows, ROWS) * query if kind == "text" else places
        inside.append(together * (within if checkpointing else within - kept))
    places = 4 * rows * (means.words + sizes.features(means))  # two decoders, for L_reg and for L_rec
    rebuilding = {
        "decoders' states": places * DECODING * sizes.text.hidden_size * (1 if half else 1.5),
        "words' scores": 2 * rows * means.words / 2 * sizes.text.vocab_size * WORD,
    }
    at_once = rebuilding if rebuilds and sum(rebuilding.values()) > max(inside) else {}
    found |= at_once or {"inside of a layer": max(inside)}
    return {name: value / 1e9 for name, value in found.items()}


def _bytes(each: tuple[int, int], widths: Any, half: bool) -> float:
    inner, outer = each
    return (inner * widths.intermediate_size + outer * widths.hidden_size) * (1 if half else 2)


def waiting(sizes: Sizes, means: Means, share: int) -> float:
    """GB of the machine's own memory for a process's pictures: its share of the batch that is learnt from,
    and of those that are made ready meanwhile.
    """
    numbers = 3 * sizes.vision.temporal_patch_size * sizes.vision.patch_size**2
    return (AHEAD + 1) * share * means.shown * sizes.patches(means) * numbers * 4 / 1e9


def configuration(name: str) -> dict[str, Any]:
    return tomllib.loads(shipped(f"data/training/{name}.toml").read_text(encoding="utf-8"))


def memory_options(found: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Those of a configuration's options that memory depends on, for `memory_of`."""
    names = ("batch_size", "chunk", "lora", "shard", "checkpointing", "dtype", "precision")
    own = {name: found[name] for name in names if name in found}
    return own | {"processes": processes, "rebuilds": found.get("objective") != "contrastive"}


def means_of_mini() -> Means:
    """Counted on the first of MERIT-mini's training queries and products."""
    shop, tokenizer = cl.dataset("mini", "train"), AutoTokenizer.from_pretrained(shipped("data/coral-mini"))
    query, pictures = counted(tokenizer, shop.queries[:SAMPLE])
    product, _ = counted(tokenizer, shop.products[:SAMPLE])
    return Means(query, product, pictures)


def times(sizes: Sizes, means: Means) -> list[dict]:
    """Operations of a pair, and what they come to on each machine."""
    measured = pd.read_csv(HERE / "rehearsal.csv")
    own = measured[measured["what"].str.fullmatch(r"encode in \w+: GFLOP/s")].iloc[0]
    peaks = PEAKS | {"eight H100": 8 * PEAKS["one H100, 80 GB"]}
    rows = []
    for kind, lora in {"LoRA": 16, "all parameters": 0}.items():
        parts = step_of(sizes, means, lora)
        pair = sum(parts.values())
        rows += [row(f"{kind}: TFLOP of a pair, {name}", [value / 1e12]) for name, value in parts.items()]
        rows.append(row(f"{kind}: TFLOP of a pair", [pair / 1e12]))
        fewer = sum(step_of(sizes, replace(means, pictures=2), lora).values())
        rows.append(row(f"{kind}: TFLOP of a pair whose query has two pictures", [fewer / 1e12]))
        rows.append(row(f"{kind}: pairs a second on {own['machine']}", [own["median"] * 1e9 / pair]))
        rows += [row(f"{kind}: pairs a second on {at}", [SHARE * peak / pair]) for at, peak in peaks.items()]
        rows += [
            row(
                f"{kind}: hours an epoch on {at}, {share:.0%} of its peak",
                [EPOCH * pair / peak / share / 3600],
            )
            for at, peak in peaks.items()
            for share in SHARES
        ]
    return rows


def takes(sizes: Sizes, means: Means, name: str) -> list[dict]:
    """Steps, hours and memory of a ready configuration."""
    found, (processes, card) = configuration(name), CONFIGURATIONS[name]
    peak = PEAKS["one RTX 4090, 24 GB" if card == 24 else "one H100, 80 GB"] * processes * SHARE
    pair = sum(step_of(sizes, means, found.get("lora", 0)).values())
    steps = math.ceil(found["epochs"] * EPOCH / found["batch_size"])
    query, product = (
        sizes.prompt(*own, means.side) for own in ((means.query, means.pictures), (means.product, 1))
    )
    evaluation = found["held_out"] * query + POOL * product
    step = found["batch_size"] * pair / peak
    rows = [
        row(f"{name}: steps, at most", [steps]),
        row(f"{name}: s a step", [step]),
        row(f"{name}: hours", [steps * step / 3600]),
        row(f"{name}: s an evaluation, at least", [evaluation / peak]),
    ]
    memory = memory_of(sizes, means, **memory_options(found, processes))
    rows += [row(f"{name}: GB, {part}", [value]) for part, value in memory.items()]
    rows.append(row(f"{name}: GB in all", [sum(memory.values())], f"< {0.85 * card:g}"))
    waits = waiting(sizes, means, found["batch_size"] // processes) * processes
    return [*rows, row(f"{name}: GB of the machine's memory, for pictures", [waits])]


class _Windows:
    """What the vision tower's attention asks of a tensor with the ends of its windows, all of one length."""

    def __init__(self, patches: int, length: int):
        self.lengths = [length] * (patches // length)

    def __getitem__(self, other) -> "_Windows":
        return self

    __sub__ = __getitem__

    def tolist(self) -> list[int]:
        return self.lengths


def traced(kind: str, lora: int = 0, layers: int = 1, checkpointing: bool = True) -> tuple[float, float]:
    """Bytes a token of the states that layers of the real size keep from the forward to the backward pass,
    and of all states when there are the most; counted on tensors without numbers, so it needs no memory.

    `kind` is "text" or "vision". Adapters of rank `lora` learn, or all parameters, in bfloat16.
    """
    shape = SHAPE | {"num_hidden_layers": layers}
    shape["vision_config"] = SHAPE["vision_config"] | {"depth": layers}
    empty = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        network = Qwen2_5_VLForConditionalGeneration._from_config(
            Qwen2_5_VLConfig.from_dict(shape), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        if lora:
            targets = rf".*language_model.*\.({'|'.join(TARGETS)})"
            network.add_adapter(peft.LoraConfig(r=lora, lora_alpha=2 * lora, target_modules=targets))
    with empty:
        for part in network.modules():
            for name, own in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
                learns = own.requires_grad
                tensor = torch.empty(own.shape, dtype=torch.float32 if lora and learns else own.dtype)
                # The tracker takes every parameter for one that learns.
                if learns:
                    part._parameters[name] = nn.Parameter(tensor)
                else:
                    part._parameters.pop(name, None)
                    part._buffers[name] = tensor
        if checkpointing:
            network.activation_checkpointing_enable({"use_reentrant": False})
        rows, length = (8, 766) if kind == "text" else (4, 1024)
        width = network.config.text_config.hidden_size if kind == "text" else 1280
        states = torch.empty(rows, length, width, dtype=torch.bfloat16).requires_grad_(not lora)
        tracker = MemTracker()
        tracker.track_external(network.train())
        with tracker:
            with torch.autocast("cpu", torch.bfloat16):
                out = _through(network.model, kind, states)
            kept = _states(tracker.get_tracker_snapshot("current"))
            out.float().sum().backward()
        return kept / rows / length, _states(tracker.get_tracker_snapshot("peak")) / rows / length


def _through(model: Any, kind: str, states: torch.Tensor) -> torch.Tensor:
    rows, length, _ = states.shape
    if kind == "text":
        seen = torch.empty(rows, 1, length, length, dtype=torch.bool)
        masks = dict.fromkeys(("full_attention", "sliding_attention"), seen)
        places = torch.empty(3, rows, length, dtype=torch.long)
        read = model.language_model(
            inputs_embeds=states, attention_mask=masks, position_ids=places, use_cache=False
        )
        return read.last_hidden_state[:, -1]
    states, turns = states.flatten(0, 1), torch.empty(rows * length, 80)
    for block in model.visual.blocks:
        states = block(states, cu_seqlens=_Windows(rows * length, 64), position_embeddings=(turns, turns))
    return states


def _states(snapshot: Mapping[Any, Mapping[Any, int]]) -> int:
    counts = next(iter(snapshot.values()))
    return sum(size for name, size in counts.items() if str(name).endswith(("ACT", "TEMP")))


def counts(sizes: Sizes) -> list[dict]:
    """INSIDE and KEPT beside what torch counts."""
    rows = []
    for kind, lora in (("text", 16), ("text", 0), ("vision", 0)):
        widths = sizes.text if kind == "text" else sizes.vision
        inside = traced(kind, lora)[1] - 2 * widths.hidden_size
        one, two = (traced(kind, lora, layers, False)[0] for layers in (1, 2))
        name = f"a {kind} layer, {'LoRA' if lora else 'all parameters'}"
        for what, found, each in (("inside", inside, INSIDE), ("kept", two - one, KEPT)):
            rows.append(row(f"{name}: kB a token {what}, counted by torch", [found / 1e3]))
            rows.append(row(f"{name}: kB a token {what}, taken to be", [_bytes(each, widths, True) / 1e3]))
    return rows


def main() -> list[dict]:
    sizes, means = Sizes(Qwen2_5_VLConfig.from_dict(SHAPE)), means_of_mini()
    rows = [
        row("tokens of a product's texts", [means.product]),
        row("tokens of a query's texts", [means.query]),
        row("pictures of a query", [means.pictures]),
        row("parameters, 1e9", [sizes.all / 1e9]),
        row("parameters of adapters of rank 16, 1e6", [sizes.adapters(16) / 1e6]),
        row("parameters of Coral's decoders, 1e6", [sizes.decoders / 1e6]),
        *times(sizes, means),
        *counts(sizes),
    ]
    for name in CONFIGURATIONS:
        rows += takes(sizes, means, name)
    return rows


if __name__ == "__main__":
    print(keep("train_costs", main()).to_string(index=False))
