"""The offline world: MERIT-mini, a drawn catalogue, and coral-mini, the small Qwen2.5-VL that is trained on
it.

Nothing but `replication`, the command line and `cl.dataset("mini")` knows of it.
"""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.mini.architecture import untrained as untrained
    from coral_lab.mini.merit_mini import catalogue as catalogue
    from coral_lab.mini.naming import name_attributes as name_attributes
    from coral_lab.mini.naming import speak as speak
    from coral_lab.mini.pretraining import pretrain as pretrain
    from coral_lab.mini.recipe import train_all as train_all
    from coral_lab.mini.recipe import train_stage as train_stage

__getattr__, __dir__, __all__ = public(__name__, __file__)
