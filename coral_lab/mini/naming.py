"""Which attributes a checkpoint can name, asked of it in words: the picture alone, and the title in five
languages.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from coral_lab.metrics import estimate
from coral_lab.mini.lessons import SLOTS, UNKNOWN, Lesson, picture_lesson, title_lesson
from coral_lab.mini.titles import retitle
from coral_lab.models.forward import tokenize
from coral_lab.models.inputs import prompt
from coral_lab.models.model import Model, network_of
from coral_lab.models.pixels import key
from coral_lab.models.protocol import Embedder, Item
from coral_lab.models.vision import vision_of
from coral_lab.prompts import LANGUAGES
from coral_lab.query import Product

LONGEST = 32  # tokens; an answer has nine words


def name_attributes(model: Embedder, products: Sequence[Product], batch_size: int = 64) -> pd.DataFrame:
    """Share of attributes that the model names right when it speaks freely (greedy decoding), with 95%
    intervals.

    One row a source ("picture", "title en", …) and attribute that the source shows; a wrong or missing word
    is wrong. Columns: source, attribute, n, accuracy, low, high. For products of MERIT-mini only. Raises
    CheckpointError for a model that only embeds.
    """
    model = network_of(model, "naming attributes")
    lessons = [("picture", picture_lesson(product)) for product in products]
    lessons += [
        (f"title {language}", title_lesson(retitle(product, language)))
        for language in LANGUAGES
        for product in products
    ]
    said = speak(model, [lesson[0] for _, lesson in lessons], batch_size)
    rows = [
        {"source": source, "attribute": slot, "right": right}
        for (source, lesson), text in zip(lessons, said, strict=True)
        for slot, right in _marks(lesson, text)
    ]
    return _summary(pd.DataFrame(rows))


def _marks(lesson: Lesson, said: str) -> Iterable[tuple[str, bool]]:
    words = said.split()
    words += [""] * (len(SLOTS) - len(words))
    for slot, wanted, word in zip(SLOTS, lesson[1].split(), words, strict=False):
        if wanted != UNKNOWN:
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
