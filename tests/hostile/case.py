"""What a hostile case is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WORKS = "works"


@dataclass(frozen=True)
class Case:
    """`make` writes files into a folder, `call` reads them; `says` is part of the error's line, or WORKS."""

    make: Callable[[Path], object]
    call: Callable[[Path], object]
    says: str
