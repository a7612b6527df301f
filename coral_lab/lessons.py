"""What coral-mini's base learns, in words, by next-token prediction: to see, to read, and to answer.

Every product is answered with one word for each slot, "-" where picture and title do not tell:

    picture alone      -> class color pattern brand shape trim - - -
    title alone        -> class - - brand - - material size origin     (what this title names)
    picture and title  -> all that either shows
    query              -> class and the wanted values, in the order of the conditions
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coral_lab.catalogue import ATTRIBUTES, VISUAL, named_in_title, stated
from coral_lab.inputs import Item, prompt, read, see, tokenize
from coral_lab.interleaved import Product, Query
from coral_lab.models import Model

SLOTS = ("class", *ATTRIBUTES)
UNKNOWN = "-"

Lesson = tuple[Item, str]
"""Something to look at or read, and the answer."""


def picture_lesson(product: Product) -> Lesson:
    return replace(product, title=""), answer(product, VISUAL)


def title_lesson(product: Product) -> Lesson:
    return replace(product, image=None), answer(product, named_in_title(product))


def product_lesson(product: Product) -> Lesson:
    return product, answer(product, {*VISUAL, *named_in_title(product)})


def query_lesson(query: Query) -> Lesson:
    values = [condition.value for condition in query.conditions]
    extra = stated(query)
    return query, " ".join(map(_word, [query.class_name, *values, *(extra or ())[1:]]))


def answer(product: Product, known: Sequence[str] | set[str]) -> str:
    """One word a slot: the class, and the value of each attribute that is `known`, else "-"."""
    values = [product.attributes[key][0] if key in known else UNKNOWN for key in ATTRIBUTES]
    return " ".join(map(_word, [product.class_name, *values]))


def _word(value: str) -> str:
    return value.replace(" ", "_")


def answer_loss(model: Model, lessons: Sequence[Lesson], augmented: bool = False) -> Tensor:
    """Mean next-token cross-entropy over the answers' tokens, the end of turn included."""
    logits, targets, _ = _answers(model, lessons, augmented)
    return cross_entropy(logits, targets)


@torch.inference_mode()
def slot_accuracy(model: Model, lessons: Sequence[Lesson]) -> dict[str, float]:
    """Share of slots named right, by slot, given the right words before it; unknown slots do not count.

    Fast enough to follow a training run; `attributes.py` lets the model speak for itself.
    """
    logits, targets, lengths = _answers(model, lessons)
    right = (logits.argmax(-1) == targets).split(lengths)
    hits: dict[str, list[bool]] = {}
    for (_, text), row in zip(lessons, right, strict=True):
        sizes = [len(ids) for ids in model.processor.tokenizer(_spaced(text))["input_ids"]]
        for slot, word, tokens in zip(SLOTS, text.split(), row[:-1].split(sizes), strict=True):
            if word != UNKNOWN:
                hits.setdefault(slot, []).append(bool(tokens.all()))
    return {slot: sum(found) / len(found) for slot, found in hits.items()}


def _spaced(text: str) -> list[str]:
    """The words of an answer, each with the space before it, as they stand in the whole."""
    first, *others = text.split()
    return [first, *(f" {word}" for word in others)]


def _answers(
    model: Model, lessons: Sequence[Lesson], augmented: bool = False
) -> tuple[Tensor, Tensor, list[int]]:
    """Logits [token, vocabulary] and ids [token] of all answers' tokens, and the answers' lengths."""
    prompts = [prompt(model, item) for item, _ in lessons]
    vision = see(model, prompts, augmented)
    end = model.processor.tokenizer.eos_token
    batch = tokenize(model, prompts, vision, [text + end for _, text in lessons])
    hidden = read(model, prompts, vision, batch)
    lengths, width = batch["answer_lengths"], hidden.shape[1]
    is_answer = torch.arange(1, width) >= width - lengths[:, None]
    logits = model.network.lm_head(hidden[:, :-1][is_answer])
    return logits.float(), batch["input_ids"][:, 1:][is_answer].to(logits.device), lengths.tolist()
