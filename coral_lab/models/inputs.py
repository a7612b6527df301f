"""From items to prompts: what the chat template writes, and the pictures that go with it. Nothing is opened
yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coral_lab.errors import ItemError
from coral_lab.images import MAX_PIXELS, Picture, Sized
from coral_lab.models.loading import Model
from coral_lab.models.templates import render
from coral_lab.prompts import Format, parts
from coral_lab.query import Product, Query, name_of
from coral_lab.sources.border import brief, text_of

Item = Product | Query | Sequence[dict]
"""What can be encoded: a product, a query, or chat messages as the model card builds them."""


@dataclass(frozen=True)
class Prompt:
    """One item after the chat template: `text` has one image token for each of the `pictures`, in order."""

    name: str
    text: str
    pictures: tuple[Picture | Sized, ...]


def prompt(model: Model, item: Item | Any, format: str | Format = "seq", name: str = "messages") -> Prompt:
    """The item as text and pictures; nothing is opened yet. `name` is what errors call raw messages.

    Raises ItemError for messages without content, videos, and texts that contain the image token itself.
    """
    chat: list[dict[str, Any]]
    pictures: tuple[Picture | Sized, ...]
    if isinstance(item, Product | Query):
        name = name_of(item)
        content = parts(item, format)
        texts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in content
        ]
        chat = [{"role": "user", "content": texts}]
        shown = (part for part in content if not isinstance(part, str))
        own = (part.image if isinstance(part, Product) else part for part in shown)
        pictures = tuple(picture for picture in own if picture is not None)
    else:
        chat, pictures = _chat(item, name)
    text = _written(model.processor, chat, name)
    found = text.count(model.processor.image_token)
    if found != len(pictures):
        token = model.processor.image_token
        raise ItemError(
            name, f"{token} stands {found} times for {len(pictures)} pictures; take it out of the text"
        )
    return Prompt(name, text, pictures)


def _written(processor: Any, chat: Sequence[dict], name: str) -> str:
    """What the chat template makes of messages. Raises ItemError for what it makes nothing of."""
    try:
        return render(processor.chat_template, chat, processor.tokenizer.special_tokens_map)
    except Exception as error:  # whatever a template does or runs into
        problem = f"the model's chat template cannot write it ({error}); use its base's template"
        raise ItemError(name, problem) from error


def _chat(messages: Sequence[dict] | Any, name: str) -> tuple[list[dict], tuple[Picture | Sized, ...]]:
    """Raw messages with their pictures taken out, as qwen-vl-utils finds them."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ItemError(name, f"is {brief(messages)}; give a Product, a Query or a list of chat messages")
    chat, pictures = [], []
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ItemError(name, f"message {brief(message)} has no role or content; see the model card")
        role, content = text_of(message["role"], name, "role"), message["content"]
        if other := [key for key in message if key not in ("role", "content") and message[key] is not None]:
            raise ItemError(name, f"a message has {brief(other[0])}, which is not read; leave it out")
        entries = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(entries, list | tuple) or not all(isinstance(entry, dict) for entry in entries):
            problem = f"content {brief(content)} is no text and no list of entries; see the model card"
            raise ItemError(name, problem)
        texts = []
        for entry in entries:
            text, picture = _text_or_picture(
                {key: own for key, own in entry.items() if own is not None}, name
            )
            texts.append({"type": "image"} if picture is not None else {"type": "text", "text": text})
            pictures += [picture] if picture is not None else []
        chat.append({"role": role, "content": texts})
    return chat, tuple(pictures)


LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
"""What an entry with a picture may ask of qwen-vl-utils."""


KINDS = ("text", "image", "image_url")
"""Types of an entry and, the same words, the field that holds what it is."""


def _text_or_picture(entry: dict[str, Any], name: str) -> tuple[str, Picture | Sized | None]:
    """One of the two, of an entry without what is None. Raises ItemError for neither, both, a video, or an
    unknown key: nothing is left unread.
    """
    if "video" in entry:
        raise ItemError(name, "has a video; coral_lab reads text and pictures")
    found = [field for field in KINDS if field in entry]
    kind = entry.get("type", found[0] if found else None)
    if len(found) != 1 or not isinstance(kind, str) or found[0] != kind:
        problem = f"entry {brief(entry)} is of type {brief(kind)} and has {' and '.join(found) or 'neither'}"
        raise ItemError(name, f"{problem}; give it a text or an image, and that type")
    limits = LIMITS if kind != "text" else ()
    if other := [key for key in entry if key not in ("type", kind, *limits)]:
        raise ItemError(name, f"an entry has {', '.join(map(brief, other))}, which is not read; leave it out")
    if kind == "text":
        return text_of(entry["text"], name, "text"), None
    picture = entry[kind]
    return "", Sized(picture, asked) if (asked := _limits(entry, name)) else picture


def _limits(entry: dict[str, Any], name: str) -> tuple[tuple[str, int], ...]:
    """Raises ItemError for limits that qwen-vl-utils would leave unread, or that nothing can meet."""
    limits = {key: entry[key] for key in LIMITS if key in entry}
    for key, own in limits.items():
        if not isinstance(own, int) or isinstance(own, bool) or not 0 < own <= MAX_PIXELS:
            raise ItemError(name, f"{key} is {brief(own)}; give a number of pixels from 1 to {MAX_PIXELS:,}")
    if ("resized_height" in limits) != ("resized_width" in limits):
        raise ItemError(name, "has one of resized_height and resized_width; give both or none")
    if limits.get("resized_height", 1) * limits.get("resized_width", 1) > MAX_PIXELS:
        raise ItemError(name, f"is to be resized to more than {MAX_PIXELS:,} pixels; ask for fewer")
    if limits.get("min_pixels", 1) > limits.get("max_pixels", MAX_PIXELS):
        raise ItemError(name, "min_pixels is more than max_pixels; turn them round")
    return tuple(limits.items())
