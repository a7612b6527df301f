"""The border: what comes in is checked here, once, by one function a kind; past it nothing is checked again.

Texts are composed and can be written, None is as absent, and whatever is refused is named: item, field, the
value found, the value wanted.
"""

import reprlib
import unicodedata
from collections.abc import Iterable, Mapping
from numbers import Integral

from coral_lab.errors import ItemError, one_line


def text_of(value: object, item: str, field: str) -> str:
    """The border that every text enters by: composed (NFC), with None as absent. `item` is what an error
    calls its owner. Raises ItemError for what is no text, or cannot be written as UTF-8.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise refused(item, field, value, "it must be text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = f"field {field!r} holds half a character ({error}); repair the text"
            raise ItemError(item, problem) from None
    return composed(str.__str__(value))  # numpy and enums have texts of their own kinds


def composed(text: str) -> str:
    """As texts are compared: accents and their letters as one character where there is one (NFC)."""
    return unicodedata.normalize("NFC", text)


def brief(value: object) -> str:
    """A value as errors show it: its beginning, on one line, whatever it is and however large."""
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = 80
    try:
        return one_line(shortened.repr(value), 80)
    except Exception:  # a number of 5,000 digits, say
        return f"<{type(value).__name__}>"


def refused(item: str, field: str, value: object, way_out: str) -> ItemError:
    return ItemError(item, f"field {field!r} is {brief(value)}, of type {type(value).__name__}; {way_out}")


def set_texts(item: object, name: str, fields: Iterable[str]) -> None:
    for own in fields:
        object.__setattr__(item, own, text_of(getattr(item, own), name, own))


def check_id(id: object, kind: str) -> None:
    if not isinstance(id, str) or not id:
        problem = "the id is no text; give a non-empty str (MERIT uses str(idx))"
        raise ItemError(f"{kind} {brief(id)}", problem)


def several(values: object, item: str, field: str, way_out: str) -> tuple:
    if values is None:
        return ()
    try:
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise TypeError
        return tuple(values)
    except TypeError:  # an array of no dimension is iterable until one tries
        raise refused(item, field, values, way_out) from None


def id_of(id: object, item: str, field: str) -> str:
    """The id of another item, as text that is not empty."""
    own = text_of(id, item, field)
    if not own:
        raise refused(item, field, id, "give ids of products")
    return own


HIGHEST_GRADE = 100
"""Of any scale: a gain is 2^grade, which must stay a number."""


def grades_of(grades: object, item: str, field: str = "relevance") -> dict[str, int]:
    """`{id: grade}` of a mapping whose grades are whole numbers from 0 to HIGHEST_GRADE."""
    if grades is None:
        return {}
    if not isinstance(grades, Mapping):
        raise refused(item, field, grades, "it must map ids of products to grades")
    found: dict[str, int] = {}
    for id, grade in grades.items():
        own = id_of(id, item, field)
        if own in found:
            raise ItemError(item, f"field {field!r} grades product {brief(own)} twice; keep one")
        found[own] = _grade(grade, item, f"{field}, {own}")
    return found


def _grade(grade: object, item: str, field: str) -> int:
    own = int(grade) if isinstance(grade, float) and grade.is_integer() else grade  # of a table with gaps
    if isinstance(own, bool) or not isinstance(own, Integral) or not 0 <= int(own) <= HIGHEST_GRADE:
        raise refused(item, field, grade, f"a grade is a whole number from 0 to {HIGHEST_GRADE}")
    return int(own)


def wanted_values(name: str, wanted: object, kind: type) -> set:
    values = [wanted] if isinstance(wanted, kind) or not isinstance(wanted, Iterable) else list(wanted)
    if bad := [value for value in values if not isinstance(value, kind)]:
        raise ValueError(f"{name} is {brief(bad[0])}; give one {kind.__name__} or several")
    return {composed(value) if isinstance(value, str) else value for value in values}


def attributes_of(attributes: object, item: str, field: str = "attributes") -> dict[str, tuple[str, ...]]:
    """`{key: (value, ...)}` of `{key: value or values}`, without what is None."""
    if attributes is None:
        return {}
    if not isinstance(attributes, Mapping):
        raise refused(item, field, attributes, "it must map keys to values")
    found: dict[str, tuple[str, ...]] = {}
    for key, own in attributes.items():
        if own is None:
            continue
        name = text_of(key, item, field)
        if key is None or name in found:
            raise ItemError(item, f"field {field!r} has the key {brief(key)}, or has it twice; keep one")
        found[name] = _values(own, item, f"{field}, {name}")
    return found


def _values(own: object, item: str, field: str) -> tuple[str, ...]:
    if isinstance(own, str):
        own = (own,)
    values = several(own, item, field, "it must be text or a list of texts")
    return tuple(text_of(value, item, field) for value in values if value is not None)
