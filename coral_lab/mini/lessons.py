"""What coral-mini's base learns, in words, by next-token prediction: to see, to read, and to answer.

Every product is answered with one word for each slot, "-" where picture and title do not tell:

    picture alone      -> class color pattern brand shape trim - - -
    title alone        -> class - - brand - - material size origin     (what this title names)
    picture and title  -> all that either shows
    query              -> class, then each wanted attribute and its value, in the order of the conditions

Naming the attribute before its value makes a query much easier to learn to answer: one token further on, the
model only has to look where that word stands in the question. Answers to products and queries may begin with
any of their values, each as likely (`summary_loss`): so the last token before them knows all of it, which is
what an embedding needs (arXiv 2307.16645); else it knows the first word of the answer only.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coral_lab.mini.queries import stated
from coral_lab.mini.titles import ATTRIBUTES, VISUAL, named_in_title
from coral_lab.models.forward import tokenize
from coral_lab.models.inputs import Item, prompt
from coral_lab.models.model import Model
from coral_lab.models.prefixes import by_length, forward_last
from coral_lab.models.vision import vision_of
from coral_lab.query import Product, Query
from coral_lab.training import distributed
from coral_lab.training.augment import moves_for, moving

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
    wanted = [word for condition in query.conditions for word in (condition.attribute, condition.value)]
    return query, " ".join(map(_word, [query.class_name, *wanted, *(stated(query) or ())]))


def answer(product: Product, known: Sequence[str] | set[str]) -> str:
    """One word a slot: the class, and the value of each attribute that is `known`, else "-"."""
    values = [product.attributes[key][0] if key in known else UNKNOWN for key in ATTRIBUTES]
    return " ".join(map(_word, [product.class_name, *values]))


def _word(value: str) -> str:
    return value.replace(" ", "_")


def answer_loss(model: Model, lessons: Sequence[Lesson], augmented: bool = False) -> Tensor:
    """Mean next-token cross-entropy over the answers' tokens, the end of turn included.

    Across processes, each with lessons of its own: this process's part of the mean over all of them.
    """
    logits, targets, _ = predictions(model, lessons, augmented)
    return cross_entropy(logits, targets, reduction="sum") / _everywhere(model, len(targets))


def summary_loss(model: Model, lessons: Sequence[Lesson], augmented: bool = False) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy of answers whose first word may be any value of the lesson's, each as likely.

    Returns that of the first token, mean over the lessons, and that of those after it, given the answer as it
    stands, mean over these tokens; across processes as in `answer_loss`.
    """
    logits, targets, lengths = predictions(model, lessons, augmented)
    is_first = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    is_first[[0, *accumulate(lengths[:-1])]] = True
    words = [_values(item, text) for item, text in lessons]
    firsts = [[ids[0] for ids in model.processor.tokenizer(row)["input_ids"]] for row in words]
    log_p = logits[is_first].log_softmax(-1)
    means = torch.stack([row[ids].mean() for row, ids in zip(log_p, firsts, strict=True)])
    after = cross_entropy(logits[~is_first], targets[~is_first], reduction="sum")
    return -means.sum() / _everywhere(model, len(means)), after / _everywhere(model, int((~is_first).sum()))


def _everywhere(model: Model, count: int) -> float:
    """The count summed over all processes."""
    return distributed.total([float(count)], model.device)[0]


def _values(item: Item, text: str) -> list[str]:
    """The values in a lesson's answer, each with the space before it."""
    named = zip(_asked(text) if isinstance(item, Query) else SLOTS, text.split(), strict=True)
    return [f" {word}" for slot, word in named if slot and word != UNKNOWN]


@torch.inference_mode()
def slot_accuracy(model: Model, lessons: Sequence[Lesson]) -> dict[str, float]:
    """Share of slots named right, by slot, given the right words before it; unknown slots do not count.

    For a query the slots are its class and the values it asks for.

    Fast enough to follow a training run; `attributes.py` lets the model speak for itself.
    """
    hits: dict[str, list[bool]] = {}
    for (item, text), row in zip(lessons, words_right(model, lessons), strict=True):
        slots = _asked(text) if isinstance(item, Query) else SLOTS
        for slot, word, right in zip(slots, text.split(), row, strict=True):
            if slot and word != UNKNOWN:
                hits.setdefault(slot, []).append(right)
    return {slot: sum(found) / len(found) for slot, found in hits.items()}


@torch.inference_mode()
def words_right(model: Model, lessons: Sequence[Lesson]) -> list[list[bool]]:
    """For each word of each answer, whether it is the likeliest one after the right words before it."""
    logits, targets, lengths = predictions(model, lessons)
    found = []
    for (_, text), row in zip(lessons, (logits.argmax(-1) == targets).split(lengths), strict=True):
        sizes = [len(ids) for ids in model.processor.tokenizer(_spaced(text))["input_ids"]]
        found.append([bool(tokens.all()) for tokens in row[:-1].split(sizes)])
    return found


def _asked(text: str) -> list[str]:
    """The slot of each word of a query's answer; "" for the attributes' own names."""
    words = text.split()
    return ["class", *(slot for attribute in words[1::2] for slot in ("", attribute))]


def _spaced(text: str) -> list[str]:
    """The words of an answer, each with the space before it, as they stand in the whole."""
    first, *others = text.split()
    return [first, *(f" {word}" for word in others)]


def predictions(
    model: Model, lessons: Sequence[Lesson], augmented: bool = False
) -> tuple[Tensor, Tensor, list[int]]:
    """Logits [token, vocabulary] and ids [token] of all answers' tokens, ends of turn included, and the
    answers' lengths.
    """
    prompts = [prompt(model, item) for item, _ in lessons]
    vision = vision_of(model, prompts, moving(model, moves_for(prompts)) if augmented else None)
    end = model.processor.tokenizer.eos_token
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    for some in by_length(prompts):
        own = [prompts[i] for i in some]
        batch = tokenize(model, own, vision, [lessons[i][1] + end for i in some])
        lengths = batch["answer_lengths"]
        count = int(lengths.max())
        is_answer = torch.arange(count) >= count - lengths[:, None]
        hidden = forward_last(model, own, vision, batch, count + 1)[:, :-1][is_answer]
        ids = batch["input_ids"][:, -count:][is_answer].to(hidden.device)
        logits = model.network.lm_head(hidden).float()
        rows |= zip(
            some, zip(logits.split(lengths.tolist()), ids.split(lengths.tolist()), strict=True), strict=True
        )
    logits, targets = zip(*(rows[i] for i in range(len(prompts))), strict=True)
    return torch.cat(logits), torch.cat(targets), [len(ids) for ids in targets]
