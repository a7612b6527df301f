"""Which paths of a table's pictures are right, told by listing each folder once."""

import os
import re
from pathlib import Path

from coral_lab.errors import ItemError
from coral_lab.sources.files import leads_out

PLAIN = re.compile(r"[^\s\[{|;:\\~/]([^|;:\\\x00\r\n]*[^\s|;:\\\x00])?")
"""A path that is one and is relative, without what may separate several."""


class OwnFiles:
    """The regular files in a table's folder and below it, links left out.

    What is in it may be opened; what is not may be none, or needs a closer look.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._names: dict[str, frozenset[str]] = {}

    def __contains__(self, address: str) -> bool:
        if self.folder is None or not PLAIN.fullmatch(address):
            return False
        parent, _, name = address.rpartition("/")
        if parent not in self._names:
            self._names[parent] = self._listed(self.folder, parent)
        return name in self._names[parent]

    @staticmethod
    def _listed(folder: Path, parent: str) -> frozenset[str]:
        place = folder / parent
        try:
            if ".." in parent.split("/") or leads_out(place, folder):
                return frozenset()
            with os.scandir(place) as entries:
                return frozenset(own.name for own in entries if own.is_file(follow_symlinks=False))
        except (OSError, ValueError, ItemError):  # reading the row says what is wrong
            return frozenset()
