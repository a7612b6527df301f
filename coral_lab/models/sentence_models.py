"""Folders of sentence-transformers: any network, with the pooling and the prompts that their own files say.

They are the general way in for a model that is none of `architectures.py`. Only safetensors are read and no
code from a folder is run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from coral_lab.errors import ItemError, require
from coral_lab.images import Sized, digest
from coral_lab.models import fingerprints
from coral_lab.models.families import PLAIN, Family
from coral_lab.models.folder_files import VALUES, brief, look_over, refused
from coral_lab.models.protocol import Conversation

MODULES = "modules.json"
LIBRARY = "sentence_transformers."

PAIR = ("image", "text")
"""One picture and one text, read together by a model that takes no chat messages."""

MOST = 64
"""Modules of a folder."""

OURS = {"Transformer": {}, "Pooling": {"pooling_mode": "lasttoken"}, "Normalize": {}}
"""What `saving.py` writes, and what `loading.py` makes itself of a network that it knows."""


@dataclass(frozen=True, eq=False)
class SentenceModel:
    """A folder of sentence-transformers as it says itself that it is run.

    Queries are encoded with its prompt for queries and products with that for documents, if it has any; raw
    messages with none. It takes chat messages, pictures in their order, or else one picture and one text: of
    several pictures one is pasted (*Cat*).
    """

    name: str
    network: Any
    family: Family = PLAIN
    settings: str = field(default="", repr=False)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.network.get_embedding_dimension())

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    @cached_property
    def takes(self) -> tuple[Any, ...]:
        """What it reads, in sentence-transformers' words: "text", "image", "message", ("image", "text")."""
        return tuple(self.network.modalities)

    @property
    def fingerprint(self) -> str:
        """Of its weights as they are now, its files' settings, and how items are worded for it."""
        return digest([fingerprints.weights(self.network), self.settings, str(self.dtype), repr(self.family)])

    def embed(self, conversations: Sequence[Conversation]) -> Float32[np.ndarray, "conversation dim"]:
        """Rows of conversations in their order. Raises ItemError for one that it cannot read."""
        found = np.empty((len(conversations), self.dim), np.float32)
        calls = {
            "query": self.network.encode_query,
            "product": self.network.encode_document,
            "messages": self.network.encode,
        }
        for kind, call in calls.items():
            places = [i for i, said in enumerate(conversations) if said.kind == kind]
            inputs = [self._input(conversations[i]) for i in places]
            if places:
                found[places] = call(inputs, batch_size=len(places), show_progress_bar=False)
        return found

    def _input(self, said: Conversation) -> Any:
        """What sentence-transformers takes for it. Every text is named as one: a title that looks like a
        picture's address stays a title.
        """
        if any(isinstance(picture, Sized) for picture in said.pictures):
            raise ItemError(said.name, "limits a picture's pixels, which this model does not; leave that out")
        if "message" in self.takes:
            return said.messages
        images, text = said.images, said.text
        if not images:
            return {"text": text}
        if len(images) > 1 or len(said.chat) > 1:
            raise ItemError(said.name, f"{self.name[-60:]!r} takes one picture and one text; paste or cut")
        wanted = PAIR if text else "image"
        if not self.network.supports(wanted):
            problem = f"{self.name[-60:]!r} reads {', '.join(map(str, self.takes))}, and this has a picture"
            raise ItemError(said.name, f"{problem}{' and a text' if text else ''}; use a format without")
        return {"image": images[0], "text": text} if text else {"image": images[0]}

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        modules = " → ".join(type(module).__name__ for module in self.network)
        kind = f"{str(self.dtype).removeprefix('torch.')}, {self.device}, {modules}"
        return f"SentenceModel({self.name!r}: {millions:,.1f} M parameters, {self.dim} dimensions, {kind})"


def is_run_otherwise(folder: Path) -> bool:
    """Whether a folder's own modules are others than those that this package makes of a network that it
    knows: another pooling, further layers, prompts.
    """
    if not (folder / MODULES).is_file():
        return False
    found = [(str(own["type"]).rpartition(".")[2], own["path"]) for own in _modules(folder)]
    if [kind for kind, _ in found] != list(OURS):
        return True
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    told = folder / Path(found[1][1]).name / "config.json"
    if not told.is_file():  # a copy of the checkpoint alone
        return any(prompts.values())
    pooled = _json(told)
    mode = pooled.get("pooling_mode", pooled.get("pooling_mode_lasttoken") and "lasttoken")
    return any(prompts.values()) or mode != OURS["Pooling"]["pooling_mode"]


def sentence_model(
    folder: Path, name: str, device: torch.device, dtype: torch.dtype | None, family: Family
) -> SentenceModel:
    """A folder with `modules.json`, loaded. Raises CheckpointError for one without, for modules that are not
    sentence-transformers' own, for pickled weights, and for whatever its files make it run into.
    """
    _check(folder)
    library = require("sentence_transformers", "models")
    options = {"use_safetensors": True} | ({"dtype": dtype} if dtype else {})
    try:
        network = library.SentenceTransformer(
            str(folder),
            device=str(device),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs=options,
        )
    except Exception as error:  # whatever its files say
        raise refused(
            folder, f"could not be loaded: {brief(error)}", "mend that, or download it again"
        ) from error
    found = SentenceModel(name, network.eval(), family, _settings(folder))
    if "message" in found.takes or family.most_pictures is not None:
        return found
    return replace(found, family=replace(family, most_pictures=1))


def _check(folder: Path) -> None:
    """Raises CheckpointError for what would run code, unpickle, or lead out of the folder."""
    if not (folder / MODULES).is_file():
        problem = f"has no {MODULES}, so that sentence-transformers would take the mean of all tokens"
        raise refused(folder, problem, "name its family if it is a known one, or add the file")
    look_over(folder)
    for own in _modules(folder):
        kind, place = own["type"], folder / own["path"]
        if not kind.startswith(LIBRARY):
            problem = f"names the module {brief(kind, 80)}, code that would have to be run"
            raise refused(
                folder / MODULES, problem, "encode with it elsewhere, and give its vectors to cl.vectors"
            )
        if Path(own["path"]).is_absolute() or ".." in Path(own["path"]).parts:
            raise refused(
                folder / MODULES, f"leads out of the folder, to {brief(place, 80)}", "mend its paths"
            )
        if place != folder and place.is_dir():
            look_over(place)
        pickled = [file for kind in ("*.bin", "*.pt", "*.pth") for file in place.glob(kind)]
        if pickled and not any(place.glob("*.safetensors")):
            raise refused(pickled[0], "is pickled, and only safetensors are read", "convert its weights")


def _modules(folder: Path) -> list[dict[str, Any]]:
    """The list in `modules.json`. Raises CheckpointError for anything else."""
    found = _read(folder / MODULES)
    wanted = (
        isinstance(found, list) and 0 < len(found) <= MOST and all(isinstance(own, dict) for own in found)
    )
    if not wanted or not all(isinstance(own.get(name), str) for own in found for name in ("type", "path")):
        raise refused(folder / MODULES, "is no list of modules with type and path", "copy it again")
    return found


def _json(file: Path) -> dict[str, Any]:
    found = _read(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > VALUES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refused(file, f"is no JSON ({error})", "copy it again") from error


def _settings(folder: Path) -> str:
    """A digest of all files that say how it is run: two folders of the same weights may pool differently."""
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in (".json", ".jinja", ".txt")]
    return digest([f"{file.relative_to(folder)} {file.read_text(encoding='utf-8')}" for file in files])
