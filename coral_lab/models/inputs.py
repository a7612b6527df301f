"""From items to what the network reads, and from there to embeddings: the steps that encoding and training share.

Pictures go through qwen-vl-utils and the checkpoint's own image processor exactly as in the model card's code, but
each distinct picture once, however many texts show it.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutputWithPooling

from coral_lab.images import ItemError, Picture
from coral_lab.interleaved import Format, Product, Query, name_of, parts
from coral_lab.models.loading import Model
from coral_lab.models.pixels import Pixel, key
from coral_lab.training import augment

Item = Product | Query | Sequence[dict]
"""What can be encoded: a product, a query, or chat messages as the model card builds them."""


PATCHES, CPU_PATCHES = 2**15, 2**12
"""Patches that the vision tower looks at together."""


@dataclass(frozen=True)
class Prompt:
    """One item after the chat template: `text` has one image token for each of the `pictures`, in order."""

    name: str
    text: str
    pictures: tuple[Picture, ...]


def prompt(model: Model, item: Item | Any, format: str | Format = "seq", name: str = "messages") -> Prompt:
    """The item as text and pictures; nothing is opened yet. `name` is what errors call raw messages.

    Raises ItemError for messages without content, videos, and texts that contain the image token itself.
    """
    if isinstance(item, Product | Query):
        name = name_of(item)
        content = parts(item, format)
        texts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in content
        ]
        chat = [{"role": "user", "content": texts}]
        shown = (part for part in content if not isinstance(part, str))
        pictures = tuple(part.image if isinstance(part, Product) else part for part in shown)
    else:
        chat, pictures = _chat(item, name)
    text = model.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    found = text.count(model.processor.image_token)
    if found != len(pictures):
        token = model.processor.image_token
        raise ItemError(
            name, f"{token} stands {found} times for {len(pictures)} pictures; take it out of the text"
        )
    return Prompt(name, text, pictures)


def _chat(messages: Sequence[dict] | Any, name: str) -> tuple[list[dict], tuple[Picture, ...]]:
    """Raw messages with their pictures taken out, as qwen-vl-utils finds them."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ItemError(name, f"is {messages!r:.80}; give a Product, a Query or a list of chat messages")
    chat, pictures = [], []
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ItemError(name, f"message {message!r:.80} has no role or content; see the model card")
        content = message["content"]
        entries = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = []
        for entry in entries:
            picture = entry.get("image", entry.get("image_url"))
            if "video" in entry:
                raise ItemError(name, "has a video; coral_lab reads text and pictures")
            if picture is None and "text" not in entry:
                raise ItemError(name, f"entry {entry!r:.80} has neither text nor image")
            texts.append(
                {"type": "image"} if picture is not None else {"type": "text", "text": entry["text"]}
            )
            pictures += [picture] if picture is not None else []
        chat.append({"role": message["role"], "content": texts})
    return chat, tuple(pictures)


@dataclass(frozen=True)
class Vision:
    """Image features [image token, dim] and grids [3] of distinct pictures, by `key`."""

    features: dict[Hashable, Tensor]
    grids: dict[Hashable, Tensor]


Moves = Mapping[Hashable, Float[Tensor, " 4"]]
"""How each picture is moved while training, by `key`."""


def draw_moves(prompts: Sequence[Prompt]) -> Moves:
    """A small random move for each distinct picture, by torch's own random numbers."""
    keys = dict.fromkeys(key(picture) for prompt in prompts for picture in prompt.pictures)
    return dict(zip(keys, augment.draw_moves(len(keys)), strict=True))


def see(model: Model, prompts: Sequence[Prompt], moves: Moves | None = None) -> Vision:
    """Run the vision tower once for each distinct picture of the prompts, each moved as `moves` says."""
    return look(
        model,
        model.pixels((picture, prompt.name) for prompt in prompts for picture in prompt.pictures),
        moves,
    )


def look(model: Model, found: Mapping[Hashable, Pixel], moves: Moves | None = None) -> Vision:
    """As `see`, of pictures that are processed already: as many of them at once as a processor's cache has room for."""
    most = CPU_PATCHES if model.device.type == "cpu" else PATCHES
    features, some, size = {}, {}, 0
    for k, pixel in found.items():
        if some and size + len(pixel[0]) > most:
            features |= _look(model, some, moves)
            some, size = {}, 0
        some[k] = pixel
        size += len(pixel[0])
    if some:
        features |= _look(model, some, moves)
    return Vision(features, {k: grid for k, (_, grid) in found.items()})


def _look(model: Model, found: Mapping[Hashable, Pixel], moves: Moves | None) -> dict[Hashable, Tensor]:
    values = torch.cat([pair[0] for pair in found.values()])
    grids = torch.stack([pair[1] for pair in found.values()])
    if moves is not None:
        processor = model.processor.image_processor
        by = torch.stack([moves[k] for k in found])
        values = augment.move(values, grids, by, processor.merge_size, processor.patch_size)
    output = model.network.model.get_image_features(
        values.to(model.device), grids.to(model.device), return_dict=True
    )
    return dict(zip(found, output.pooler_output, strict=True))


def tokenize(model: Model, prompts: Sequence[Prompt], vision: Vision, answers: Sequence[str] | None = None):
    """Left-padded `input_ids`, `attention_mask`, `mm_token_type_ids` [prompt, token] and `image_grid_thw`.

    The image token is repeated as the processor does. `answers`, if given, follow the prompts; their length in
    tokens is `answer_lengths` [prompt]. Raises ItemError for a text longer than the model can read.
    """
    tokenizer, merge = model.processor.tokenizer, model.processor.image_processor.merge_size**2
    ids = [
        _expand(row, model.processor.image_token_id, [
            int(vision.grids[key(picture)].prod()) // merge for picture in prompt.pictures
        ])
        for prompt, row in zip(prompts, token_ids(model, prompts), strict=True)
    ]  # fmt: skip
    tails = tokenizer(list(answers))["input_ids"] if answers is not None else [[]] * len(prompts)
    longest = model.network.config.text_config.max_position_embeddings
    for prompt, row in zip(prompts, ids, strict=True):
        if len(row) > longest:
            raise ItemError(
                prompt.name, f"is {len(row):,} tokens long and the model reads {longest:,}; shorten it"
            )
    rows = [head + tail for head, tail in zip(ids, tails, strict=True)]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    batch["mm_token_type_ids"] = (batch["input_ids"] == model.processor.image_token_id).int()
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


def read(
    model: Model, prompts: Sequence[Prompt], vision: Vision, batch: BatchEncoding
) -> Float[Tensor, "row token dim"]:
    """The text model's last hidden states, after its final norm. No LM head, no kept layers, no cache."""
    features = tuple(vision.features[key(picture)] for prompt in prompts for picture in prompt.pictures)
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "answer_lengths"}
    if features:  # in the order of the rows: image tokens are filled flat across the batch
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    return model.network.model(**inputs, use_cache=False, return_dict=True).last_hidden_state


def last(hidden: Float[Tensor, "row token dim"], mask: Tensor) -> Float[Tensor, "row dim"]:
    """The last real token's state (h_eos), wherever the padding is (`mask` is 1 on tokens)."""
    place = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(-1).to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


def pool(states: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Embeddings: states L2-normalised in float32."""
    return normalize(states.float(), dim=-1)
