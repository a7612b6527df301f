"""Files that ship with the package: beside its code where a wheel put them, else at the top of the
checkout.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(path: str) -> Path:
    """Where a file or folder of the repository's `data/` or `notebooks/` lies:
    `shipped("data/published.csv")`.

    The wheel carries both (pyproject.toml, force-include). Never write there. Raises FileNotFoundError.
    """
    carried = _PACKAGE / "_shipped"
    found = (carried if carried.is_dir() else _PACKAGE.parent) / path
    if not found.exists():
        raise FileNotFoundError(
            f"{found} is missing; it ships with coral_lab: install it again, or restore it from git"
        )
    return found
