"""What a model is to the workbench: a name, a number of dimensions, and embeddings of conversations.

Whatever has these three can be encoded with, indexed, measured, swept, mapped and compared:

    class Colour:
        name, dim, fingerprint = "mean colour", 3, "1"

        def embed(self, conversations):
            return [np.mean([np.mean(image, (0, 1)) for image in own.images], 0) for own in conversations]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from PIL import Image

from coral_lab.errors import ItemError
from coral_lab.images import Picture, Sized, digest, identity, open_image
from coral_lab.query import Product, Query
from coral_lab.sources.border import brief

Item = Product | Query | Sequence[dict]
"""What can be encoded: a product, a query, or chat messages as the model card builds them."""

LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
"""What an entry with a picture may ask of qwen-vl-utils."""


@dataclass(frozen=True, eq=False)
class Conversation:
    """One item as a model is asked about it; nothing is opened yet.

    `name` is what errors call it. `item` is the product or query that it is about, None for chat messages of
    the user's own. `chat` are the messages as the model card builds them, each a role and a list of entries
    with a text or an image, which is as it came in: a path, bytes, a PIL image, a function.
    """

    name: str
    chat: tuple[Mapping[str, Any], ...]
    item: Product | Query | None = None

    @property
    def kind(self) -> str:
        """What models have instructions for: "product", "query", or "messages"."""
        return "messages" if self.item is None else type(self.item).__name__.lower()

    @property
    def text(self) -> str:
        """All that is said in words, without the pictures between."""
        return "".join(entry["text"] for entry in self._entries if entry["type"] == "text")

    @property
    def pictures(self) -> tuple[Picture | Sized, ...]:
        """The pictures in order, as they came in."""
        return tuple(_sized(entry) for entry in self._entries if entry["type"] == "image")

    @property
    def images(self) -> list[Image.Image]:
        """The pictures in order, opened as RGB. Raises ItemError for one that cannot be."""
        return [open_image(_plain(picture), self.name) for picture in self.pictures]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The chat with its pictures opened, for a processor's `apply_chat_template`. Raises ItemError as
        `images` does.
        """
        opened = iter(self.images)
        return [
            {
                "role": turn["role"],
                "content": [
                    {**entry, "image": next(opened)} if entry["type"] == "image" else dict(entry)
                    for entry in turn["content"]
                ],
            }
            for turn in self.chat
        ]

    @property
    def identity(self) -> str:
        """A digest of all that is said and shown. Raises ItemError for a picture that cannot be read."""
        shown = iter(self.pictures)
        pieces = [self.kind]
        for turn in self.chat:
            pieces.append(f"role {turn['role']}")
            for entry in turn["content"]:
                picture = entry["type"] == "image"
                pieces.append(identity_of(next(shown), self.name) if picture else f"text {entry['text']}")
        return digest(pieces)

    @property
    def _entries(self) -> list[Mapping[str, Any]]:
        return [entry for turn in self.chat for entry in turn["content"]]


def identity_of(picture: Picture | Sized, name: str) -> str:
    """A picture's, with its limits if it has any. Raises ItemError."""
    limits = f" {picture.limits}" if isinstance(picture, Sized) else ""
    return identity(_plain(picture), name) + limits


def _plain(picture: Picture | Sized) -> Picture:
    return picture.picture if isinstance(picture, Sized) else picture


def _sized(entry: Mapping[str, Any]) -> Picture | Sized:
    limits = tuple((key, entry[key]) for key in LIMITS if key in entry)
    return Sized(entry["image"], limits) if limits else entry["image"]


@runtime_checkable
class Embedder(Protocol):
    """Anything that embeds conversations.

    `embed` gives rows [conversation, dim] in their order, of any length: they are L2-normalised when they
    come in. It may raise ItemError for a conversation that it cannot read. Two members more are looked for
    and may be absent: `fingerprint`, a text that changes whenever its embeddings would, without which a store
    keeps none of them; and `family` (`families.py`), how items are worded for it, by default as they are.
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def embed(self, conversations: Sequence[Conversation]) -> Any: ...


def fingerprint_of(model: Embedder) -> str | None:
    """What a model says that its embeddings depend on; None if it does not say. Raises ValueError for what
    is no text.
    """
    found = getattr(model, "fingerprint", None)
    if found is not None and (not isinstance(found, str) or not found):
        problem = f"the fingerprint of {brief(model.name)} is {brief(found)}"
        raise ValueError(f"{problem}; give a text that changes when its embeddings do, or none")
    return found


def rows(model: Embedder, conversations: Sequence[Conversation]) -> Float32[np.ndarray, "conversation dim"]:
    """What a model makes of conversations, L2-normalised in float32. Raises ValueError for what is no row of
    `dim` numbers for each, and ItemError for a row of zeros, which points nowhere.
    """
    found: Any = model.embed(conversations)
    found = np.asarray(found.detach().float().cpu() if hasattr(found, "detach") else found)
    wanted = (len(conversations), model.dim)
    if found.shape != wanted or found.dtype.kind not in "fiu":
        problem = f"{brief(model.name)} gives {found.dtype} of shape {found.shape} for {wanted[0]} items"
        raise ValueError(f"{problem}; give numbers of shape {wanted}")
    lengths = np.linalg.norm(found.astype(np.float64), axis=1)
    for conversation, length in zip(conversations, lengths, strict=True):
        if length == 0:
            raise ItemError(conversation.name, f"{brief(model.name)} gives zeros for it; leave it out")
    return (found / lengths[:, None]).astype(np.float32)
