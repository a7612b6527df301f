"""The architectures that are read, as data: what transformers calls their parts, and what each does its own
way. What is not said here is alike in them: names of weights, last-token pooling, positions in three axes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen2VLTextConfig,
    Qwen2VLVideoProcessor,
    Qwen2VLVisionConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLTextConfig,
    Qwen3VLVideoProcessor,
    Qwen3VLVisionConfig,
)

Network = (
    Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration | Qwen3VLForConditionalGeneration
)
Processor = Qwen2_5_VLProcessor | Qwen2VLProcessor | Qwen3VLProcessor


@dataclass(frozen=True)
class Architecture:
    """One architecture: transformers' classes for it, and where it differs from the others.

    `kinds` are its configs, of the whole, of text and of vision. `sections` are how a head's places are
    divided among time, height and width where a config does not say. `pictures` is handed to the processor
    with pictures that qwen-vl-utils has resized. `also` are classes of others that a config may name, which
    add no weights to it. `quick` says whether this room's quick path is for it.
    """

    title: str
    kinds: tuple[type[PreTrainedConfig], type[PreTrainedConfig], type[PreTrainedConfig]]
    network: type[Network]
    processor: type[Processor]
    video_processor: type[Qwen2VLVideoProcessor | Qwen3VLVideoProcessor] = Qwen2VLVideoProcessor
    sections: tuple[int, int, int] = (16, 24, 24)
    pictures: Mapping[str, bool] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    quick: bool = False


QWEN2_5_VL = Architecture(
    "Qwen2.5-VL",
    (Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig),
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    also=("Qwen2_5_VLRetForConditionalGeneration", "BiQwen2_5"),  # LamRA's and colpali's
    quick=True,
)
QWEN2_VL = Architecture(
    "Qwen2-VL",
    (Qwen2VLConfig, Qwen2VLTextConfig, Qwen2VLVisionConfig),
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    also=("Qwen2VLRetForConditionalGeneration", "Qwen2VLRetFinetuneForConditionalGeneration"),  # LamRA's
)
QWEN3_VL = Architecture(
    "Qwen3-VL",
    (Qwen3VLConfig, Qwen3VLTextConfig, Qwen3VLVisionConfig),
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    sections=(24, 20, 20),
    # As its README and Qwen3-VL-Embedding's code do: the processor's own limits would enlarge small pictures
    # (github.com/QwenLM/Qwen3-VL, "pass `do_resize=False` to the processor"). CORAL's card does not.
    pictures={"do_resize": False},
)

ARCHITECTURES = {
    architecture.network.__name__: architecture for architecture in (QWEN2_5_VL, QWEN2_VL, QWEN3_VL)
}
"""By the architecture that a checkpoint's config.json names."""


def architecture_of(config: PreTrainedConfig | Any) -> Architecture:
    """Of a network's config. Raises ValueError for one of another model."""
    for architecture in ARCHITECTURES.values():
        if isinstance(config, architecture.kinds[0]):
            return architecture
    titles = ", ".join(architecture.title for architecture in ARCHITECTURES.values())
    raise ValueError(f"{type(config).__name__} is of no architecture that is read; give one of {titles}")


def check_quick(architecture: Architecture, name: str) -> None:
    """Raises ValueError for an architecture without the quick path."""
    if not architecture.quick:
        only = ", ".join(own.title for own in ARCHITECTURES.values() if own.quick)
        problem = f"{name} is {architecture.title}, and quick embeddings are for {only} only"
        raise ValueError(f"{problem}; use quick=False, which gives the same")
