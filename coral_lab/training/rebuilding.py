"""Seeing what Coral's decoders rebuild: a product with a part hidden, and what they say was there.

Decoders predict features, not pixels. To show a predicted feature, the piece of a gallery picture whose
feature is nearest stands in for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from coral_lab.errors import ItemError
from coral_lab.images import Picture, img, open_image, thumbnail
from coral_lab.models.inputs import prompt
from coral_lab.models.model import Model
from coral_lab.models.pixels import key
from coral_lab.models.prefixes import last_states
from coral_lab.models.vision import Vision, vision_of
from coral_lab.query import Product, Query, name_of
from coral_lab.results import flow, grey, paragraph, tile
from coral_lab.training.reconstruction import Decoders, content, token_embeddings

CELL = 48  # pixels of a token's piece of the picture
HIDDEN = (128, 128, 128)


@dataclass(frozen=True)
class Rebuilt:
    """`shown` is the picture with hidden pieces grey, `rebuilt` the same with a gallery's pieces in their
    place.

    `words` are the text's tokens: what stands there, whether it was hidden, and the decoder's guess.
    """

    product: Product
    source: str
    shown: Image.Image
    rebuilt: Image.Image
    words: tuple[tuple[str, bool, str], ...]

    @property
    def guessed(self) -> float:
        """Share of the hidden words that were guessed; NaN if none was hidden."""
        right = [word == guess for word, hidden, guess in self.words if hidden]
        return sum(right) / len(right) if right else float("nan")

    def _repr_html_(self) -> str:
        pieces = [
            escape(word)
            if not hidden
            else f' <span style="background:#8883"><s>{escape(word)}</s> → <b>{escape(guess)}</b></span>'
            for word, hidden, guess in self.words
        ]
        size = 3 * CELL
        halves = {"half hidden": self.shown, "rebuilt": self.rebuilt}
        pictures = {"whole": self.product.thumbnail()}
        pictures |= {name: thumbnail(picture, name, size) for name, picture in halves.items()}
        cards = [
            tile(
                img(address, size, name),
                [name],
                size + 16,
            )
            for name, address in pictures.items()
        ]
        return flow(cards) + paragraph(f"{grey(f'from {self.source}')}<br>{''.join(pieces)}")


@torch.inference_mode()
def rebuild(
    model: Model,
    decoders: Decoders,
    product: Product,
    query: Query | None = None,
    *,
    gallery: Sequence[Product],
    rate: float = 0.5,
    seed: int = 0,
) -> Rebuilt:
    """Hide a share `rate` of the product's picture and words, and rebuild them from one h_eos.

    That is the query's (L_reg) or, without a query, the product's own (L_rec). `gallery` lends the pieces.
    Raises ItemError for a product without a picture, ValueError for decoders without vision and language.
    (Seven parameters: two models, the items, and what is drawn by chance.)
    """
    _image(product)
    if set(decoders.by_kind) != {"vision", "language"}:
        raise ValueError(f"decoders rebuild {sorted(decoders.by_kind)}; both vision and language are needed")
    target = [prompt(model, product)]
    source = target if query is None else [prompt(model, query)]
    vision = vision_of(model, target + source)
    found = content(model, target, vision, decoders.longest)
    draws = torch.rand(1, decoders.longest, generator=torch.Generator().manual_seed(seed))
    masks = found.masks(draws, rate)
    embeddings, eos = token_embeddings(model, target, found, vision), last_states(model, source, vision)
    said = {k: d(embeddings, masks[k], found.padding, eos)[0] for k, d in decoders.by_kind.items()}
    guesses = model.network.get_output_embeddings()(said["language"]).argmax(-1)
    token = model.processor.tokenizer.decode
    words = tuple(
        (token([id]), hidden, token([guess]))
        for id, hidden, guess, word in zip(
            found.ids[0].tolist(),
            masks["language"][0].tolist(),
            guesses.tolist(),
            found.words[0].tolist(),
            strict=True,
        )
        if word
    )
    hidden = masks["vision"][0][found.pictures[0]]
    cells = _cells(model, product, vision)
    shown = [Image.new("RGB", (CELL, CELL), HIDDEN) if h else c for h, c in zip(hidden, cells, strict=True)]
    lent = _nearest(model, said["vision"][found.pictures[0]], gallery)
    rebuilt = [piece if h else c for h, c, piece in zip(hidden, cells, lent, strict=True)]
    columns = _size(model, product, vision)[1]
    name = "the product's own h_eos" if query is None else f"the h_eos of {name_of(query)}"
    return Rebuilt(product, name, _paste(shown, columns), _paste(rebuilt, columns), words)


def _image(product: Product) -> Picture:
    if product.image is None:
        raise ItemError(name_of(product), "has no picture to hide; choose one that has")
    return product.image


def _size(model: Model, product: Product, vision: Vision) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    _, height, width = vision.grids[key(_image(product))].tolist()
    merge = model.processor.image_processor.merge_size
    return height // merge, width // merge


def _cells(model: Model, product: Product, vision: Vision) -> list[Image.Image]:
    """The picture's pieces, one an image token, row by row."""
    rows, columns = _size(model, product, vision)
    picture = open_image(_image(product), name_of(product)).resize((columns * CELL, rows * CELL))
    return [
        picture.crop((x * CELL, y * CELL, (x + 1) * CELL, (y + 1) * CELL))
        for y in range(rows)
        for x in range(columns)
    ]


def _nearest(model: Model, predicted: Tensor, gallery: Sequence[Product]) -> list[Image.Image]:
    """For each predicted feature [token, dim] the gallery's piece with the nearest feature (cosine)."""
    vision = vision_of(model, [prompt(model, product) for product in gallery])
    owners = [(product, i) for product in gallery for i in range(len(vision.features[key(_image(product))]))]
    features = torch.cat([vision.features[key(_image(product))] for product in gallery]).float()
    features = normalize(layer_norm(features, features.shape[-1:]), dim=-1)
    best = (normalize(predicted.float(), dim=-1) @ features.T).argmax(-1).tolist()
    return [_cells(model, owners[i][0], vision)[owners[i][1]] for i in best]


def _paste(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    picture = Image.new("RGB", (columns * CELL, len(cells) // columns * CELL))
    for i, cell in enumerate(cells):
        picture.paste(cell, (i % columns * CELL, i // columns * CELL))
    return picture
