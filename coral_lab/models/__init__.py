"""Checkpoints: loading and saving them, and how Qwen2.5-VL runs quickly.

`loading` is the door. What stands behind `embedding` makes the model card's embeddings in less time: pictures
are looked at once (`pixels`, `vision`, `batching`), what prompts begin with alike is read once (`prefixes`),
only the last place of the last layer is worked out (`last_layer`), and CPUs get the kernels that suit them
(`window_attention`, `cpu_attention`, `cpu_linear`). `quantizing` keeps weights in eight bits.
"""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.models.loading import best_device as best_device
    from coral_lab.models.loading import load as load
    from coral_lab.models.loading import make_quick as make_quick
    from coral_lab.models.model import Model as Model
    from coral_lab.models.model import same_embeddings as same_embeddings
    from coral_lab.models.saving import save as save

__getattr__, __dir__, __all__ = public(__name__, __file__)
