"""From prompts to the network's states, and from there to embeddings: the steps that encoding and training
share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BatchEncoding

from coral_lab.errors import ItemError
from coral_lab.models.inputs import Prompt
from coral_lab.models.model import Model
from coral_lab.models.pixels import key
from coral_lab.models.vision import Vision

READING = 16
"""Tokens that a CPU works through in the time that it takes to read all weights, however many there are."""

BEGINNING, GPU_BEGINNING, CUDA_BEGINNING = 2**24, 2**30, 2**36
"""Parameters that are multiplied with one token in the time that it takes to begin a layer, which is Python's
whatever its size: by two CPU cores in float32, by a laptop's GPU, by an H100 in bfloat16. The first was
measured, the others are estimates.
"""


def call_cost(model: Model) -> int:
    """The tokens that are read in the time that one more call of the text model takes: about 100 for
    coral-mini and 16 for the 3B on a CPU, 900 for the 3B on an H100.

    It is told from the model's shape and not measured, so that batches are the same every time.
    """
    layer = model.network.model.language_model.layers[-1]
    beginning = {"cpu": BEGINNING, "cuda": CUDA_BEGINNING}.get(model.device.type, GPU_BEGINNING)
    return READING + beginning // sum(parameter.numel() for parameter in layer.parameters())


def tokenize(model: Model, prompts: Sequence[Prompt], vision: Vision, answers: Sequence[str] | None = None):
    """Left-padded `input_ids`, `attention_mask`, `mm_token_type_ids` [prompt, token] and `image_grid_thw`.

    The image token is repeated as the processor does. `answers`, if given, follow the prompts; their length
    in tokens is `answer_lengths` [prompt]. Raises ItemError for a text longer than the model can read.
    """
    tokenizer, merge = model.processor.tokenizer, model.processor.image_processor.merge_size**2
    ids = [
        _expand(
            row,
            model.processor.image_token_id,
            [int(vision.grids[key(picture)].prod()) // merge for picture in prompt.pictures],
        )
        for prompt, row in zip(prompts, token_ids(model, prompts), strict=True)
    ]
    tails = tokenizer(list(answers))["input_ids"] if answers is not None else [[]] * len(prompts)
    longest = model.longest
    for prompt, row in zip(prompts, ids, strict=True):
        if len(row) > longest:
            raise ItemError(
                prompt.name, f"is {len(row):,} tokens long and the model reads {longest:,}; shorten it"
            )
    rows = [head + tail for head, tail in zip(ids, tails, strict=True)]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    shown = batch["input_ids"] == model.processor.image_token_id  # what gets positions in height and width
    batch["mm_token_type_ids"] = (torch.zeros_like(shown) if model.family.flat_positions else shown).int()
    batch["answer_lengths"] = torch.tensor([len(tail) for tail in tails])
    grids = [vision.grids[key(picture)] for prompt in prompts for picture in prompt.pictures]
    if grids:
        batch["image_grid_thw"] = torch.stack(grids)
    return batch


def token_ids(model: Model, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Of each prompt's text, with one image token for each picture."""
    return model.processor.tokenizer([prompt.text for prompt in prompts])["input_ids"] if prompts else []


def _expand(ids: Sequence[int], image_token: int, counts: Sequence[int]) -> list[int]:
    """Each image token as often as its picture has features; never a piece of a word, it splits the text."""
    left = iter(counts)
    return [token for id in ids for token in ([id] * next(left) if id == image_token else [id])]


@dataclass(frozen=True)
class _Seen:
    """What a vision tower made of pictures, by the names of transformers' own output for Qwen3-VL, which
    itself has no public name: `pooler_output` [picture], `deepstack_features` [layer][picture].
    """

    pooler_output: tuple[Tensor, ...]
    deepstack_features: list[tuple[Tensor, ...]]


def forward(
    model: Model, prompts: Sequence[Prompt], vision: Vision, batch: BatchEncoding
) -> Float[Tensor, "row token dim"]:
    """The text model's last hidden states, after its final norm. No LM head, no kept layers, no cache."""
    shown = [key(picture) for prompt in prompts for picture in prompt.pictures]
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "answer_lengths"}
    if shown:  # in the order of the rows: image tokens are filled flat across the batch
        features = tuple(vision.features[k] for k in shown)
        layers = list(zip(*(vision.deepstack.get(k, ()) for k in shown), strict=True))
        inputs["mm_encoder_outputs"] = {"image": _Seen(features, layers)}
    return model.network.model(**inputs, use_cache=False, return_dict=True).last_hidden_state


def last_token(hidden: Float[Tensor, "row token dim"], mask: Tensor) -> Float[Tensor, "row dim"]:
    """The last real token's state (h_eos), wherever the padding is (`mask` is 1 on tokens)."""
    place = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(-1).to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


def normalised(states: Float[Tensor, "*row dim"]) -> Float[Tensor, "*row dim"]:
    """Embeddings: states L2-normalised in float32."""
    return normalize(states.float(), dim=-1)
