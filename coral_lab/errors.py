"""Every error that a user can mend: each says what was found, what is wanted, and the way out."""

from importlib import import_module
from types import ModuleType

LONGEST = 300
"""Characters of an error's line."""


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text on one line, without what would steer a terminal; of a longer one both ends, where an error
    says what it is about and what to do.
    """
    if len(text) > 10 * longest:  # it may have millions
        text = f"{text[: 5 * longest]} … {text[-5 * longest :]}"
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 3]} … {line[-end:]}"


def printable(text: str) -> str:
    """The text as a terminal may show it: its lines, without what would steer one."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


class WorkbenchError(RuntimeError):
    """A checkpoint, a download or a store that cannot be used, in one line. (A single item that cannot is an
    ItemError.)
    """

    def __init__(self, problem: str) -> None:
        super().__init__(one_line(problem))


class CheckpointError(WorkbenchError):
    """A checkpoint that cannot be used."""


class HubError(WorkbenchError):
    """A repository on the hub that cannot be had."""


class ProcessError(WorkbenchError):
    """Another of the processes that work together ended."""


class StoreError(WorkbenchError):
    """A store that cannot be used."""


class ItemError(ValueError):
    """One product, query or message that cannot be used, in one line. `item` names it, `problem` says why."""

    def __init__(self, item: str, problem: str) -> None:
        self.item, self.problem = item, one_line(problem, LONGEST - 100)
        named = item if len(item) <= 98 else f"…{item[-97:]}"  # of a path, its file and what follows
        super().__init__(one_line(f"{named}: {self.problem}"))

    def __reduce__(self) -> tuple:
        return ItemError, (self.item, self.problem)


class ModelMismatchError(ValueError):
    """Embeddings of one model asked about with another."""


class NotFiniteError(WorkbenchError):
    """Embeddings that came out as NaN or infinity."""


class NotShownError(WorkbenchError):
    """What a dataset cannot show. A notebook says it in this line, without a traceback, and ends there."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"Not shown: {self}"]


class MissingExtraError(WorkbenchError, ImportError):
    """A package that is not installed; the message names the extra that brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Import a package that only one use needs. Raises MissingExtraError naming the extra of
    pyproject.toml.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there, and something that it needs is not
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"this needs {package}, which is not installed; run: pip install 'coral-lab[{extra}]'"
        ) from error
