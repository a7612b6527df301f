"""Model families: checkpoints of a known architecture that are asked in words of their own, as data.

An embedding is always the last hidden state of the text's last token. Models that read another place are
asked up to that place: text that follows it is not seen from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from coral_lab.models.folder_files import look_over, read_json
from coral_lab.sources.border import brief


@dataclass(frozen=True)
class Turn:
    """The words around an item: a system turn ("" for what the chat template says by itself), what comes
    before it, between its picture and its title, and after it.

    {instruction} is the family's, with the space after it only if there is one; {what} is what was shown:
    "image", "sentence", or "image and sentence".
    """

    system: str = ""
    before: str = ""
    between: str = ""
    after: str = ""


@dataclass(frozen=True)
class Family:
    """How a family's checkpoints are asked, and which they are.

    `instruction` is what queries are for, in words; where publishers give several, that which their code
    takes by default. `ending` follows what the chat template writes. Where there is no chat template,
    `picture` is what stands for a picture in the bare text. `most_pictures` is how many a query may have: of
    one, they are pasted together and come first (the paper's *Cat*). Without `titles` a product is its
    picture alone. `limits` are a picture's in pixels by qwen-vl-utils' names, `sizes` the least and most that
    the image processor makes of it; `straight` says that it gets pictures without qwen-vl-utils. With
    `flat_positions` a picture's tokens are counted like words. `longest` is in tokens. `repositories` are
    the hub ids of its checkpoints, and `source` says where all this is published.
    """

    name: str
    title: str
    query: Turn = Turn()
    product: Turn = Turn()
    instruction: str = ""
    punctuated: bool = False
    ending: str = ""
    picture: str | None = None
    most_pictures: int | None = None
    titles: bool = True
    limits: tuple[tuple[str, int], ...] = ()
    sizes: tuple[int, int] | None = None
    straight: bool = False
    flat_positions: bool = False
    longest: int | None = None
    repositories: tuple[str, ...] = ()
    source: str = ""

    @property
    def by_template(self) -> bool:
        """Whether the checkpoint's own chat template and nothing else writes its prompts."""
        return self.picture is None and not self.ending


PLAIN = Family("plain", "a model of no family")
"""An item as it is: a product's picture and title, a query's format."""

CORAL = Family(
    "coral",
    "CORAL",
    product=Turn(before="Represent the given product: ", between="\n "),
    repositories=("Bia/CORAL",),
    source="its model card",
)

HELPFUL = "You are a helpful assistant."
TILE = 28 * 28
"""Pixels of an image token of Qwen2-VL and 2.5; of Qwen3-VL it is 32 by 32."""

GME = Family(
    "gme",
    "GME",
    query=Turn(system="{instruction}"),
    product=Turn(system=HELPFUL),
    instruction=HELPFUL,
    ending="<|endoftext|>",
    most_pictures=1,
    sizes=(256 * TILE, 1280 * TILE),
    repositories=("Alibaba-NLP/gme-Qwen2-VL-2B-Instruct", "Alibaba-NLP/gme-Qwen2-VL-7B-Instruct"),
    source="its gme_inference.py, as kept in TIGER-AI-Lab/VLM2Vec; mteb's copy has 4 tiles at least",
)

LAMRA = Family(
    "lamra",
    "LamRA-Ret",
    query=Turn(before="{instruction} ", after="\nSummarize above {what} in one word: "),
    product=Turn(after="\nSummarize above {what} in one word: "),
    limits=(("min_pixels", 4 * TILE), ("max_pixels", 300 * TILE)),
    repositories=("code-kunkun/LamRA-Ret", "code-kunkun/LamRA-Ret-Qwen2.5VL-7b"),
    source="Code-kunkun/LamRA, collators and models/qwen2_vl.py: it reads the token before <emb>, with which "
    "the assistant's turn begins (issue 4)",
)

VLM2VEC = Family(
    "vlm2vec",
    "VLM2Vec-V2",
    query=Turn(before="{instruction} "),
    picture="<|image_pad|> ",
    sizes=(4 * TILE, 1280 * TILE),
    straight=True,
    flat_positions=True,
    repositories=("VLM2Vec/VLM2Vec-V2.0",),
    source="TIGER-AI-Lab/VLM2Vec, src/model/processor.py; positions: its get_rope_index counts pictures by "
    "<|vision_start|>, which its prompts do not have",
)

QWEN3_VL_EMBEDDING = Family(
    "qwen3-vl-embedding",
    "Qwen3-VL-Embedding",
    query=Turn(system="{instruction}"),
    product=Turn(system="Represent the user's input."),
    instruction="Represent the user's input.",
    punctuated=True,
    limits=(("min_pixels", 4 * 32 * 32), ("max_pixels", 1800 * 32 * 32)),
    longest=8192,
    repositories=("Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-Embedding-8B"),
    source="QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py",
)

NOMIC = Family(
    "nomic",
    "nomic-embed-multimodal",
    query=Turn(before="Query: "),
    product=Turn(before="<|im_start|>user\n", after="Describe the image.<|im_end|>"),
    ending="<|endoftext|>",
    picture="<|vision_start|><|image_pad|><|vision_end|>",
    most_pictures=0,
    titles=False,
    sizes=(4 * TILE, 768 * TILE),
    straight=True,
    repositories=("nomic-ai/nomic-embed-multimodal-3b", "nomic-ai/nomic-embed-multimodal-7b"),
    source="nomic-ai/colpali, models/qwen2_5/biqwen2_5; later colpali_engines word queries otherwise",
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {own.name: own for own in (CORAL, GME, LAMRA, VLM2VEC, QWEN3_VL_EMBEDDING, NOMIC, PLAIN)}
)
"""By the name that `load` takes as `family`."""

SENTENCE_TRANSFORMERS = "sentence-transformers"
"""The name that asks for what a folder's own modules do, whatever else it is."""

FIELD = "coral_lab_family"
"""Where a config.json says which family a checkpoint that was saved here is of."""


def check_positions(family: Family, name: str) -> None:
    """Raises ValueError for a family that has no quick path, since it counts positions its own way."""
    if family.flat_positions:
        problem = f"{name} is asked as {family.title}, whose positions quick embeddings do not have"
        raise ValueError(f"{problem}; use quick=False")


def family_for(asked: Family | str | None, name: str, folder: Path) -> Family | None:
    """The family that was asked for, or else the one of the hub id or folder that `name` is, or that a
    checkpoint saved here says in its config; None where nothing tells. Raises ValueError for an unknown name.
    """
    if isinstance(asked, Family):
        return asked
    if asked is not None and asked not in FAMILIES:
        known = ", ".join([*FAMILIES, SENTENCE_TRANSFORMERS])
        raise ValueError(f"family is {brief(asked)}; choose one of {known}, or give a Family")
    told = asked or _told(folder)
    if told in FAMILIES:
        return FAMILIES[told]
    cached = next((part for part in folder.parts if part.startswith("models--")), "").replace("--", "/")
    named = {own.rpartition("/")[2].lower() for own in (name, cached, folder.name)}
    for family in FAMILIES.values():
        if named & {repository.rpartition("/")[2].lower() for repository in family.repositories}:
            return family
    return None


def _told(folder: Path) -> str:
    look_over(folder)
    file = folder / "config.json"
    found = read_json(file).get(FIELD) if file.is_file() else None
    return found if isinstance(found, str) else ""
