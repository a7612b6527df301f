"""What an embedding depends on, in a few letters: two that differ anywhere never share a fingerprint.

A *space* is a way of making embeddings: weights, dtype, tokenizer, image processor with its pixel limits. A
*key* is what was embedded in it: the prompt's text, which the format and the chat template wrote, and the
pictures' content.
"""

import json
from typing import Any

import torch

from coral_lab.errors import require
from coral_lab.images import digest
from coral_lab.models import quantizing
from coral_lab.models.model import Model
from coral_lab.models.protocol import Embedder, fingerprint_of
from coral_lab.sources.border import brief


def space(model: Embedder) -> dict[str, str | int | dict]:
    """How a model makes embeddings. A loaded one's weights are looked at anew each time, for they may have
    learnt since; another's fingerprint is its own word. Raises ValueError for one that says nothing.
    """
    if not isinstance(model, Model):
        found = fingerprint_of(model)
        if found is None:
            problem = f"{brief(model.name)} has no fingerprint, so that nothing of it can be kept"
            raise ValueError(f"{problem}; give it one, a text that changes when its embeddings do")
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        return {"model": model.name, "fingerprint": found, "kind": kind, "dim": model.dim}
    # of a family the words are in what is embedded, and sizes in the image processor's
    family = {name: True for name in ("straight", "flat_positions") if getattr(model.family, name)}
    return family | {
        "model": model.name,
        "weights": weights(model.network),
        "dtype": str(model.dtype).removeprefix("torch."),
        "dim": model.dim,
        "tokenizer": digest([_tokenizer(model.processor.tokenizer)]),
        "image_processor": json.loads(model.processor.image_processor.to_json_string()),
    }


def _tokenizer(tokenizer: Any) -> str:
    """All of it but how it padded and truncated when it was last used, which comes first."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else repr(tokenizer)
    return text.partition('"added_tokens"')[2] or text


def name(space: dict) -> str:
    """The space's fingerprint; what the checkpoint is called is no part of it."""
    facts = {key: value for key, value in space.items() if key != "model"}
    return digest([json.dumps(facts, sort_keys=True, default=str)])


def weights(network: torch.nn.Module) -> str:
    """Of all parameters and buffers, bit for bit (xxh3): about a second for every ten gigabytes on the
    CPU. Of quantised ones the numbers that are kept.
    """
    found = require("xxhash", "store").xxh3_128()
    for key, tensor in sorted(quantizing.tensors(network).items()):
        found.update(f"{key} {tuple(tensor.shape)} {tensor.dtype};".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy())
    return found.hexdigest()
