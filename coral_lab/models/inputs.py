"""From items to conversations, as a model's family words them, and to prompts: what the chat template writes,
and the pictures that go with it. Nothing is opened yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coral_lab.errors import ItemError
from coral_lab.images import MAX_PIXELS, Picture, Sized, digest
from coral_lab.models.families import PLAIN, Family
from coral_lab.models.model import Model
from coral_lab.models.protocol import LIMITS, Conversation, Item, identity_of
from coral_lab.models.templates import render
from coral_lab.models.wording import worded
from coral_lab.prompts import Format
from coral_lab.query import Product, Query, name_of
from coral_lab.sources.border import brief, text_of


@dataclass(frozen=True)
class Prompt:
    """One item after the chat template: `text` has one image token for each of the `pictures`, in order."""

    name: str
    text: str
    pictures: tuple[Picture | Sized, ...]

    @property
    def identity(self) -> str:
        """A digest of text and pictures. Raises ItemError for a picture that cannot be read."""
        return digest([self.text, *(identity_of(picture, self.name) for picture in self.pictures)])


def conversation(
    item: Item | Any, format: str | Format = "seq", name: str = "messages", family: Family = PLAIN
) -> Conversation:
    """The item as the family words it; `name` is what errors call raw messages, which stay as they are.

    Raises ItemError for messages without content, for videos, and for more pictures than the family takes.
    """
    if isinstance(item, Product | Query):
        return Conversation(name_of(item), worded(item, format, family), item)
    found = Conversation(name, _chat(item, name))
    most = max(family.most_pictures, 1) if family.most_pictures is not None else None
    if most is not None and len(found.pictures) > most:
        problem = f"shows {len(found.pictures)} pictures, and {family.title} takes {most}"
        raise ItemError(name, f"{problem}; paste them together")
    return found


def prompt(model: Model, item: Item | Any, format: str | Format = "seq", name: str = "messages") -> Prompt:
    """The item as text and pictures; `name` is what errors call raw messages. Raises ItemError as
    `conversation` and `prompt_of` do.
    """
    return prompt_of(model, conversation(item, format, name, model.family))


def prompt_of(model: Model, said: Conversation) -> Prompt:
    """What the model's chat template makes of a conversation, and what its family lets follow. Raises
    ItemError for texts that contain the image token itself.
    """
    pictures = tuple(_limited(picture, model.family) for picture in said.pictures)
    text = _written(model, said) + model.family.ending
    token = model.processor.image_token
    found = text.count(token)
    if found != len(pictures):
        problem = f"{token} stands {found} times for {len(pictures)} pictures"
        raise ItemError(said.name, f"{problem}; take it out of the text")
    return Prompt(said.name, text, pictures)


def _limited(picture: Picture | Sized, family: Family) -> Picture | Sized:
    """With the family's own limits, unless a message gave it others."""
    return Sized(picture, family.limits) if family.limits and not isinstance(picture, Sized) else picture


def _written(model: Model, said: Conversation) -> str:
    """What the chat template makes of messages. Raises ItemError for what it makes nothing of, and for turns
    where there is none.
    """
    bare = model.family.picture
    if bare is not None:
        if len(said.chat) > 1:
            problem = f"has {len(said.chat)} turns, and {model.family.title} knows none"
            raise ItemError(said.name, f"{problem}; put all in one message")
        entries = said.chat[0]["content"]
        return "".join(bare if entry["type"] == "image" else entry["text"] for entry in entries)
    chat = [{**turn, "content": [_bare(entry) for entry in turn["content"]]} for turn in said.chat]
    template: Any = model.processor.chat_template
    try:
        return render(template, chat, model.processor.tokenizer.special_tokens_map)
    except Exception as error:  # whatever a template does or runs into
        problem = f"the model's chat template cannot write it ({error}); use its base's template"
        raise ItemError(said.name, problem) from error


def _bare(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if entry["type"] == "image" else dict(entry)


def _chat(messages: Sequence[dict] | Any, name: str) -> tuple[dict, ...]:
    """Raw messages looked over: each a role and its entries, the pictures as qwen-vl-utils finds them."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ItemError(name, f"is {brief(messages)}; give a Product, a Query or a list of chat messages")
    chat = []
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
        told = [{key: own for key, own in entry.items() if own is not None} for entry in entries]
        chat.append({"role": role, "content": [_text_or_picture(entry, name) for entry in told]})
    return tuple(chat)


KINDS = ("text", "image", "image_url")
"""Types of an entry and, the same words, the field that holds what it is."""


def _text_or_picture(entry: dict[str, Any], name: str) -> dict[str, Any]:
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
        return {"type": "text", "text": text_of(entry["text"], name, "text")}
    return {"type": "image", "image": entry[kind], **_limits(entry, name)}


def _limits(entry: dict[str, Any], name: str) -> dict[str, int]:
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
    return limits
