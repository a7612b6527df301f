"""encode at the size of CORAL: the 3B's shape with random weights in float32, against the model card's loop,
single items, and the bare products of its linear layers.

Two products and a query that shows both, pictures of 252 pixels. And 24 orders of a query of four conditions
against four times six queries, pictures of 196 pixels, at the 3B's widths with a ninth of its layers, for all
of them take an hour: by one thread and in processor seconds, which a busy neighbour changes little. Takes
16 GB. Writes benchmarks/encode_large.csv.

python benchmarks/encode_large.py          python benchmarks/encode_large.py orders
"""

import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import permutations

import encode
import numpy as np
import torch
from accelerate import init_empty_weights
from encode import card, multiply, ours, products, products_of_matrices, seconds
from sweeps import unrelated
from table import keep, megabytes, row
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from coral_lab import Condition, Product, Query, dataset, messages
from coral_lab.mini.architecture import untrained
from coral_lab.mini.recipe import corpus
from coral_lab.models.loading import make_quick
from coral_lab.models.model import Model

encode.SIZES = (252,)  # pixels a side: each picture takes seconds

TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 128_000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def large(text_layers: int = 36, vision_layers: int = 32) -> tuple[Model, nn.Module]:
    """A model of the 3B's shape, and the same weights, in the same memory, as transformers runs them."""
    text = TEXT | {"num_hidden_layers": text_layers}
    blocks = [i for i in range(vision_layers) if i % 8 == 7] or [vision_layers - 1]
    vision = VISION | {"depth": vision_layers, "fullatt_block_indexes": blocks}
    with init_empty_weights():
        model = untrained(corpus(dataset("mini"), limit=200), text=text, vision=vision)
        network = Qwen2_5_VLForConditionalGeneration(model.network.config).eval()
    torch.manual_seed(0)
    for module in network.modules():
        if module is network.lm_head:  # it is the embeddings'
            continue
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.empty(parameter.shape)
            one = name == "weight" and parameter.ndim == 1  # of a norm
            setattr(module, name, nn.Parameter(values.fill_(1) if one else values.normal_(0, 0.02), False))
    network.tie_weights()
    quick = deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    make_quick(quick)
    model.processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 12_845_056}
    return replace(model, network=quick), network


def items() -> list[Product | Query]:
    """Two products, and a query of two conditions over them."""
    shown = products(2)
    conditions = tuple(map(Condition, ("color", "brand"), shown))
    return [*shown, Query("q", shown[0].class_name, conditions)]


def processor_seconds(call: Callable) -> tuple[float, np.ndarray]:
    """Of this process, whatever others do meanwhile."""
    started = time.process_time()
    found = call()
    return time.process_time() - started, found


def sizes() -> list[dict]:
    """One call, one by one and the card's loop, at the full depth."""
    model, network = large()
    own = items()
    call, embeddings = seconds(partial(ours, model, own))
    most = megabytes("VmHWM")
    each = [seconds(partial(ours, model, item))[0] for item in own]
    conversations = [messages(item) for item in own]
    cards = [seconds(partial(card, network, model.processor, [one])) for one in conversations]
    loop, theirs = sum(taken for taken, _ in cards), np.concatenate([rows for _, rows in cards])
    pairs = products_of_matrices(model, own)
    bare, _ = seconds(partial(multiply, pairs))
    work = sum(2 * tokens.numel() * len(weight) for tokens, weight in pairs) / 1e9
    query = call - sum(each[:2])  # what it adds to a call that has its products
    return [
        row("one call: s", [call]),
        row("one by one: s", [sum(each)]),
        row("card's loop: s", [loop]),
        row("bare matrix products of the call: s", [bare]),
        row("one by one / one call", [sum(each) / call], "≥ 1"),
        row("card's loop / one by one", [loop / sum(each)], "≥ 1"),
        row("card's loop / one call", [loop / call]),
        row("card's loop / one call, the query alone", [cards[-1][0] / query], "≥ 1.3"),
        row("share of bare matrix products", [bare / call], "≥ 0.9"),
        row("GFLOP/s in linear layers", [work / call]),
        row("largest difference from the card", [float(abs(embeddings - theirs).max())], "< 1e-5"),
        row("peak memory of the call: MB", [most]),
    ]


def orders() -> list[dict]:
    """24 orders of one query, and 24 queries, by six of them, with 4 of 36 text and 4 of 32 vision layers."""
    torch.set_num_threads(1)
    encode.SIZES = (196,)
    model, _ = large(4, 4)
    queries = unrelated(6)
    wordings = [queries[0].reordered(order) for order in permutations(range(4))]
    own, theirs = (processor_seconds(partial(ours, model, some))[0] for some in (wordings, queries))
    return [
        row("24 orders of a query, a ninth of the layers: s", [own]),
        row("6 queries, a ninth of the layers: s", [theirs]),
        row("24 orders / 4 x 6 queries, a ninth of the layers", [own / theirs / 4], "≤ 0.5"),
    ]


if __name__ == "__main__":
    print(keep("encode_large", orders() if sys.argv[1:] == ["orders"] else sizes()).to_string(index=False))
