"""The last token's hidden states by layer: what an embedding would be if the text model ended earlier.

Layer 0 is what the first layer reads, the token's own embedding, which is the same for all items; layer n is
what the n-th hands on, and the last is the embedding itself, after the final norm. (Such early readings are
known as a *logit lens*; nothing was trained to be read there.)
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from coral_lab.models.families import Family
from coral_lab.models.forward import forward, normalised, tokenize
from coral_lab.models.inputs import Prompt, prompt_of
from coral_lab.models.model import Model
from coral_lab.models.protocol import Conversation
from coral_lab.models.vision import vision_of

ALL = "all"


@dataclass(frozen=True, eq=False)
class AtLayer:
    """A model read at a layer, and so a model itself; at "all" of them its rows hold every layer's, in order.

    Raises ValueError for a layer that there is not.
    """

    model: Model
    layer: int | str

    def __post_init__(self) -> None:
        if self.layer != ALL and not (isinstance(self.layer, int) and 0 <= self.layer <= self.depth):
            problem = f"layer is {self.layer!r} and {self.model.name} has {self.depth}"
            raise ValueError(f"{problem}; use 0 to {self.depth}, or {ALL!r}")

    @property
    def depth(self) -> int:
        """Number of layers of the text model."""
        return len(self.model.network.model.language_model.layers)

    @property
    def name(self) -> str:
        return f"{self.model.name}, layer {self.layer}"

    @property
    def dim(self) -> int:
        return self.model.dim * (self.depth + 1 if self.layer == ALL else 1)

    @property
    def family(self) -> Family:
        return self.model.family

    @property
    def fingerprint(self) -> str:
        return f"{self.model.fingerprint} layer {self.layer}"

    def embed(self, conversations: Sequence[Conversation]) -> Float32[np.ndarray, "conversation dim"]:
        """Rows of conversations; of "all" layers each layer's part is L2-normalised. Raises ItemError for one
        that cannot be read.
        """
        states = states_by_layer(self.model, [prompt_of(self.model, said) for said in conversations])
        if self.layer != ALL:
            return normalised(states[:, int(self.layer)]).cpu().numpy()
        return normalised(states).flatten(1).cpu().numpy()


def states_by_layer(model: Model, prompts: Sequence[Prompt]) -> Tensor:
    """States [prompt, layer, dim] of the last token, from layer 0 to the last."""
    vision = vision_of(model, prompts)
    batch = tokenize(model, prompts, vision)  # padded on the left: the last token is the last
    with torch.inference_mode(), model.turn, _listening(model) as heard:
        last = forward(model, prompts, vision, batch)[:, -1]
    return torch.stack([*heard, last], 1)


@contextmanager
def _listening(model: Model) -> Iterator[list[Tensor]]:
    """Gathers what each layer of the text model is given at the last token, while the network runs."""
    heard: list[Tensor] = []

    def listen(_: Any, given: tuple) -> None:
        heard.append(given[0][:, -1])

    with ExitStack() as stack:
        for layer in model.network.model.language_model.layers:
            stack.callback(layer.register_forward_pre_hook(listen).remove)
        yield heard
