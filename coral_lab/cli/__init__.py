"""The command line, `coral-lab`: what it takes is in `parsing.py`; a command imports what it runs when it
runs.
"""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.cli.parsing import main as main

__getattr__, __dir__, __all__ = public(__name__, __file__)
