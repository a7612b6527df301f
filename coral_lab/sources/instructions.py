"""MERIT's instructions, the text of its query files: written from a query, and read back into one.

Find a product of handbag that has the same product style with <Product 1> <image>
TITLE 1 </Product 1> and the same color with <Product 2> <image>
TITLE 2 </Product 2> with a metallic finish.
"""

from collections.abc import Iterator, Sequence

from coral_lab.query import Condition, Product, Query
from coral_lab.sources.border import brief

IMAGE = "<image>"
"""Where a reference's picture goes."""


def instruction(query: Query) -> str:
    """The query as MERIT's files word it, in English whatever its language."""
    return "".join(part if isinstance(part, str) else IMAGE for part in instruction_parts(query))


def instruction_parts(query: Query) -> Iterator[str | Product]:
    """The same, with a reference in place of each `<image>`."""
    text, link = f"Find a product of {query.class_name}", " that has "
    for number, condition in enumerate(query.conditions, 1):
        yield f"{text}{link}the same {condition.attribute} with <Product {number}> "
        yield condition.product
        text, link = f"\n{condition.product.title}{_closing(number)}", " and "
    yield text + query.text


def _opening(number: int) -> str:
    return f"<Product {number}> {IMAGE}\n"


def _closing(number: int) -> str:
    return f" </Product {number}>"


def read_instruction(text: str, conditions: Sequence[Condition]) -> tuple[str, list[str], str]:
    """The wanted class, each reference's title and the free text of an instruction that asks for
    `conditions`.

    Titles are as the instruction has them, which need not be the products' own. Raises ValueError for a text
    that does not ask for these conditions in this order, or for none.
    """
    if not conditions:
        raise ValueError("no reference product; name one or more")
    titles, end = [], 0
    class_name = ""
    for number, condition in enumerate(conditions, 1):
        words = f"the same {condition.attribute} with {_opening(number)}"
        if number == 1:
            start = text.find(f" that has {words}")
            head = text[: max(start, 0)]
            if not head.startswith("Find a product of "):
                raise ValueError(f"it does not begin with {brief('Find a product of … that has ' + words)}")
            class_name = head.removeprefix("Find a product of ")
            end = start + len(" that has ")
        elif text.startswith(" and ", end):
            end += len(" and ")
        if not text.startswith(words, end):
            found = brief(text[end : end + 80])
            raise ValueError(f"condition {number} reads {found}; from `query` it should be {brief(words)}")
        begin = end + len(words)
        own = condition.product.title
        # The product's own title first: a title may hold anything, this closing too.
        at = (
            begin + len(own)
            if text.startswith(own + _closing(number), begin)
            else text.find(_closing(number), begin)
        )
        if at < 0:
            raise ValueError(f"<Product {number}> has no end; close it with {_closing(number)!r}")
        titles.append(text[begin:at])
        end = at + len(_closing(number))
    return class_name, titles, text[end:]
