"""Models: checkpoints that are loaded and saved, in the words of their families; how Qwen2.5-VL runs
quickly; and what a model is to the rest of the workbench.

`loading` is the door. `protocol` says what a model is, `architectures` and `families` are the known ones as
data, `sentence_models` runs the others, `layers` reads one earlier. What stands behind `embedding` makes the
model card's embeddings in less time: pictures are looked at once (`pixels`, `vision`, `batching`), what
prompts begin with alike is read once (`prefixes`), only the last place of the last layer is worked out
(`last_layer`), and CPUs get the kernels that suit them (`window_attention`, `cpu_attention`, `cpu_linear`).
`quantizing` keeps weights in eight bits.
"""

from typing import TYPE_CHECKING

from coral_lab import public

if TYPE_CHECKING:
    from coral_lab.models.families import FAMILIES as FAMILIES
    from coral_lab.models.families import Family as Family
    from coral_lab.models.families import Turn as Turn
    from coral_lab.models.layers import AtLayer as AtLayer
    from coral_lab.models.loading import best_device as best_device
    from coral_lab.models.loading import load as load
    from coral_lab.models.loading import make_quick as make_quick
    from coral_lab.models.model import Model as Model
    from coral_lab.models.model import same_embeddings as same_embeddings
    from coral_lab.models.protocol import Conversation as Conversation
    from coral_lab.models.protocol import Embedder as Embedder
    from coral_lab.models.saving import save as save
    from coral_lab.models.sentence_models import SentenceModel as SentenceModel

__getattr__, __dir__, __all__ = public(__name__, __file__)
