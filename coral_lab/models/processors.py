"""A checkpoint's processor: tokenizer, picture processor and chat template from the files of any release,
tried once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    PreTrainedConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    TokenizersBackend,
)

from coral_lab.errors import CheckpointError
from coral_lab.models.architectures import Architecture, Processor, architecture_of
from coral_lab.models.folder_files import brief, look_over, read_json, refused
from coral_lab.models.templates import render
from coral_lab.models.tokenizer_files import check_tokenizer

PICTURES = {
    "Qwen2VLImageProcessor": Qwen2VLImageProcessor,
    "Qwen2VLImageProcessorFast": Qwen2VLImageProcessor,
    "Qwen2VLImageProcessorPil": Qwen2VLImageProcessorPil,
    "Qwen2_5_VLImageProcessor": Qwen2VLImageProcessor,  # Qwen2.5-VL's first release, a class that never was
    "Qwen2_5_VLImageProcessorFast": Qwen2VLImageProcessor,
}
"""Classes by the names that checkpoints give them."""

LARGEST = 2**24
"""Most pixels that a small picture may be blown up to."""

AGAIN = "copy the processor's files again"
MESSAGE: Any = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}


def has_processor(folder: Path) -> bool:
    """Whether an adapter's folder brings a processor of its own, not only a tokenizer."""
    settings = any(
        (folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")
    )
    return settings and (folder / "tokenizer_config.json").is_file()


def processor_of(folder: Path, config: PreTrainedConfig) -> Processor:
    """The processor in a folder, for a network of that config. Raises CheckpointError for one that does not
    work or that belongs to another model.
    """
    look_over(folder)
    architecture, settings = architecture_of(config), _optional(folder / "processor_config.json")
    wanted = architecture.processor.__name__
    kind = settings.get("processor_class") or wanted
    if kind != wanted:
        way = f"coral_lab reads {wanted} only" + ("" if architecture.quick else f" with {architecture.title}")
        raise refused(folder, brief(f"has a {kind}", 120), way)
    pictures = settings.get("image_processor") or read_json(folder / "preprocessor_config.json")
    video = settings.get("video_processor") or _optional(folder / "video_preprocessor_config.json")
    with _blaming(folder, "has no working processor, by its tokenizer"):
        tokenizer = _tokenizer(folder, config)
    with _blaming(folder, "has no working processor, by its settings for pictures"):
        processor = architecture.processor(
            _picture_processor(pictures),
            tokenizer,
            architecture.video_processor.from_dict(_own(video or pictures)),
            chat_template=_template(folder, settings) or tokenizer.chat_template,
        )
    with _blaming(folder, "has no working processor"):
        _try(processor, config, architecture)
    return processor


@contextmanager
def _blaming(folder: Path, problem: str) -> Iterator[None]:
    """Whatever transformers stumbles over in a folder's files is an error of that folder."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise refused(folder, f"{problem}: {brief(error)}", AGAIN) from error


def _tokenizer(folder: Path, config: Any) -> Any:
    text_config = config.text_config
    kinds = {"Qwen2Tokenizer": Qwen2Tokenizer, "TokenizersBackend": TokenizersBackend}
    kind = kinds[check_tokenizer(folder, text_config.vocab_size)]
    tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.padding_side = "left"
    return tokenizer


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _template(folder: Path, settings: dict[str, Any]) -> Any:
    """What the processor's own files say; the tokenizer reads `chat_template.jinja` and its own config."""
    return settings.get("chat_template") or _optional(folder / "chat_template.json").get("chat_template")


def _picture_processor(settings: dict[str, Any]) -> Any:
    if not isinstance(settings, dict):
        raise ValueError(f"image_processor is {settings!r}, no object of names and values")
    if "size" not in settings and not {"min_pixels", "max_pixels"} <= settings.keys():
        raise ValueError("neither size nor min_pixels and max_pixels say how large pictures may be")
    kind = settings.get("image_processor_type") or "Qwen2VLImageProcessor"
    if kind not in PICTURES:
        raise ValueError(f"image_processor_type is {kind!r}, wanted Qwen2VLImageProcessor")
    return PICTURES[kind].from_dict(_own(settings))


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the names of classes."""
    names = ("image_processor_type", "video_processor_type", "processor_class", "auto_map")
    return {name: value for name, value in settings.items() if name not in names}


def _try(processor: Processor, config: Any, architecture: Architecture) -> None:
    """One small picture and a word. Raises ValueError for what does not fit the network."""
    if not isinstance(processor.chat_template, str) or not processor.chat_template:
        raise ValueError("there is no chat template, or more than one")
    pictures: Any = processor.image_processor
    vision, text_config = config.vision_config, config.text_config
    for name, wanted in (
        ("patch_size", vision.patch_size),
        ("temporal_patch_size", vision.temporal_patch_size),
        ("merge_size", vision.spatial_merge_size),
    ):
        if getattr(pictures, name) != wanted:
            raise ValueError(f"{name} is {getattr(pictures, name)!r}, config.json says {wanted!r}")
    least, most = pictures.size["shortest_edge"], pictures.size["longest_edge"]
    if not (isinstance(least, int) and isinstance(most, int) and 0 < least <= min(most, LARGEST)):
        raise ValueError(f"pictures are to have from {least!r} to {most!r} pixels")
    largest = max(processor.tokenizer.get_vocab().values())
    if largest >= text_config.vocab_size:
        raise ValueError(f"its tokens go to {largest}, the network's to {text_config.vocab_size - 1}")
    text = render(processor.chat_template, [MESSAGE], processor.tokenizer.special_tokens_map)
    picture = Image.new("RGB", (4 * vision.patch_size, 4 * vision.patch_size))
    inputs: Any = processor(
        text=[text, "a"], images=[picture], padding=True, return_tensors="pt", **architecture.pictures
    )
    expected = int(inputs["image_grid_thw"].prod()) // vision.spatial_merge_size**2
    found = int((inputs["input_ids"] == config.image_token_id).sum())
    if found != expected:
        raise ValueError(
            f"a picture comes to {found} tokens {config.image_token_id} (image_token_id), not {expected}"
        )
    if not torch.isfinite(inputs["pixel_values"]).all():
        raise ValueError("a grey picture's pixels are not finite")
