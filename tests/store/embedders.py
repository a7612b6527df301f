"""An embedder that takes no time to load, for workers in other processes."""

import os
import time
from pathlib import Path

import numpy as np


class Letters:
    """How often each of 16 letters stands in what is said.

    It takes `slow` seconds an item, notes each in `diary`, and dies after `last` items.
    """

    name, dim, fingerprint = "letters", 16, "1"

    def __init__(self, slow: float = 0.0, diary: str = "", last: int = 10**9):
        self.slow, self.diary, self.last = slow, diary, last

    def embed(self, conversations):
        self.last -= len(conversations)
        if self.last < 0:
            raise KeyboardInterrupt
        time.sleep(self.slow * len(conversations))
        if self.diary:
            with Path(self.diary).open("a") as file:
                file.writelines(f"{os.getpid()} {own.item.id}\n" for own in conversations)
        texts = [own.text.lower() for own in conversations]
        return [np.array([1 + text.count(chr(97 + i)) for i in range(self.dim)], float) for text in texts]
