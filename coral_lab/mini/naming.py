"""Which attributes a checkpoint can name, asked of it in the words it was taught: the picture alone, and the
title in five languages; of a pretrained one also several things in one question.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from coral_lab.metrics import estimate
from coral_lab.mini import wordings
from coral_lab.mini.lessons import SLOTS, UNKNOWN, picture_lesson, title_lesson
from coral_lab.mini.pretraining import taught
from coral_lab.mini.titles import retitle
from coral_lab.mini.wordings import NONE, Exchange, Scope, limited, thing
from coral_lab.models.forward import tokenize
from coral_lab.models.inputs import prompt
from coral_lab.models.model import Model, network_of
from coral_lab.models.pixels import key
from coral_lab.models.protocol import Embedder, Item
from coral_lab.models.vision import vision_of
from coral_lab.prompts import LANGUAGES
from coral_lab.query import Product

LONGEST = 32  # tokens; an answer has nine words

Asked = tuple[str, Item, str, tuple[str, ...]]
"""What is asked by which source ("picture", "title en", …), the right answer, and what each word of it is."""


def name_attributes(model: Embedder, products: Sequence[Product], batch_size: int = 64) -> pd.DataFrame:
    """Share of attributes that the model names right when it speaks freely (greedy decoding), with 95%
    intervals.

    One row a source and attribute that the source shows; a wrong or missing word is wrong. Sources are
    "picture", "title en", …; for a model that was taught in `wordings` and to answer, also "one" and
    "several", questions about products by picture and title. Of one from which an
    out-of-distribution split is absent nothing is asked that it cannot know. Columns: source, attribute, n,
    accuracy, low, high. For products of MERIT-mini only. Raises CheckpointError for a model that only embeds.
    """
    model = network_of(model, "naming attributes")
    rung = taught(model)
    asked = [*(_instructed(products) if rung is None else _worded(products, rung.scope, rung.answers))]
    said = speak(model, [item for _, item, *_ in asked], batch_size)
    rows = [
        {"source": source, "attribute": slot, "right": right}
        for (source, _, answer, slots), text in zip(asked, said, strict=True)
        for slot, right in _marks(answer, slots, text)
    ]
    return _summary(pd.DataFrame(rows))


def _instructed(products: Sequence[Product]) -> Iterator[Asked]:
    """In the card's words, which coral-mini's base was taught in."""
    for product in products:
        yield "picture", *picture_lesson(product), SLOTS
    for language in LANGUAGES:
        for product in products:
            yield f"title {language}", *title_lesson(retitle(product, language)), SLOTS


def _worded(products: Sequence[Product], within: Scope, answers: bool) -> Iterator[Asked]:
    """In the words of `wordings`."""
    rng = Random("naming")
    known = [limited(product, within) for product in products if product.class_name in within.classes]
    for product in known:
        yield _asked("picture", wordings.see(thing(product, within, "picture"), within, rng))
    for language in within.languages:
        for product in known:
            own = thing(product, within, "title", language)
            yield _asked(f"title {language}", wordings.read(own, within, rng))
    things = [thing(product, within, "both", rng.choice(within.languages)) for product in known]
    for own in things if answers else ():
        yield _asked("one", wordings.ask(own, within, rng))
        others = rng.sample(things, min(len(things), rng.choice((1, 1, 2, 3))))
        yield _asked("several", wordings.several([own, *(other for other in others if other != own)], rng))


def _asked(source: str, own: Exchange) -> Asked:
    return source, own.said, own.answer, own.slots


def _marks(answer: str, slots: Sequence[str], said: str) -> Iterator[tuple[str, bool]]:
    words = said.split()
    words += [""] * (len(slots) - len(words))
    for slot, wanted, word in zip(slots, answer.split(), words, strict=False):
        if wanted != UNKNOWN and slot not in ("", NONE):
            yield slot, word == wanted


def _summary(marks: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (source, slot), part in marks.groupby(["source", "attribute"], sort=False):
        found = estimate(part["right"].to_numpy(float))
        rows.append(
            {
                "source": source,
                "attribute": slot,
                "n": found.n,
                "accuracy": found.mean,
                "low": found.low,
                "high": found.high,
            }
        )
    return pd.DataFrame(rows)


@torch.inference_mode()
def speak(model: Model, items: Sequence[Item], batch_size: int = 64, longest: int = LONGEST) -> list[str]:
    """What the model says to each item, by greedy decoding, at most `longest` tokens."""
    said = []
    for start in tqdm(range(0, len(items), batch_size), desc="speak", unit="batch"):
        prompts = [
            prompt(model, item, name=f"item {start + i}") for i, item in enumerate(items[start:][:batch_size])
        ]
        pixels = model.pixels((picture, prompt.name) for prompt in prompts for picture in prompt.pictures)
        batch = tokenize(model, prompts, vision_of(model, prompts))
        batch.pop("answer_lengths")
        shown = [pixels[key(picture)][0] for prompt in prompts for picture in prompt.pictures]
        if shown:
            batch["pixel_values"] = torch.cat(shown)
        network: Any = model.network
        output = network.generate(**batch.to(model.device), max_new_tokens=longest, do_sample=False)
        new = output[:, batch["input_ids"].shape[1] :]
        said += model.processor.batch_decode(new, skip_special_tokens=True)
    return said
