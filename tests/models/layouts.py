"""A checkpoint as other releases of transformers, and other people's training, leave it on disk."""

import json
import shutil
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is laid out; the defaults are how transformers 5 does it."""

    config: str = "nested"  # flat: the first release's; both: transformers 4.5x's
    names: str = "old"  # new: model.visual and model.language_model
    head: str = "none"  # beside: lm_head too; only: lm_head in place of the embeddings it is tied to
    shards: int = 1
    processor: str = "new"  # first: the first release's; tokenizer: the template in tokenizer_config.json
    leftovers: str = "none"  # config, weights or both, of decoders that training needed

    def __str__(self) -> str:
        return "-".join(map(str, vars(self).values()))


HEADS = ("none", "beside", "only")
LEFTOVERS = ("none", "config", "weights", "both")
LAYOUTS = [
    Layout(config, names, HEADS[i // 3 % 3], shards, processor)
    for i, (config, names, shards, processor) in enumerate(
        product(("nested", "flat", "both"), ("old", "new"), (1, 3), ("new", "first", "tokenizer"))
    )
]

DECODER_CONFIG = {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 1, "is_decoder": True}
DECODER_WEIGHTS = {
    "decoder.layer.0.attention.self.query.weight": torch.ones(4, 4),
    "encoder.projection.bias": torch.ones(4),
    "model.decoder.mask_token": torch.ones(1, 4),
}


def write(source: Path, folder: Path, layout: Layout) -> Path:
    """The checkpoint in `source`, which transformers 5 has saved, laid out another way in `folder`."""
    folder.mkdir(parents=True)
    for name in SMALL_FILES:
        shutil.copy(source / name, folder)
    write_json(folder / "config.json", _config(read(source / "config.json"), layout))
    _write_weights(weights_of(source / "model.safetensors", layout), folder, layout.shards)
    _write_processor(source, folder, layout.processor)
    return folder


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def change(file: Path, **values: object) -> None:
    """Set values in a file; None takes them out."""
    content = read(file) | values
    write_json(file, {name: value for name, value in content.items() if value is not None})


def new_name(name: str) -> str:
    """What transformers calls a weight since 4.52."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def weights_of(file: Path, layout: Layout) -> dict[str, torch.Tensor]:
    """The weights in a file that transformers 5 has saved, which is by their old names."""
    weights = load_file(file)
    if layout.head != "none":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    if layout.head == "only":
        del weights["model.embed_tokens.weight"]
    if layout.names == "new":
        weights = {new_name(name): tensor for name, tensor in weights.items()}
    return weights | (DECODER_WEIGHTS if layout.leftovers in ("weights", "both") else {})


def _config(config: dict, layout: Layout) -> dict:
    if layout.config != "nested":
        text = dict(config["text_config"])
        rope = text.pop("rope_parameters")
        kind = "mrope" if layout.config == "flat" else "default"
        text |= {"rope_theta": rope["rope_theta"], "torch_dtype": text.pop("dtype")}
        text["rope_scaling"] = {"type": kind, "mrope_section": rope["mrope_section"]}
        model_type = text.pop("model_type")
        config = config | {"torch_dtype": config["dtype"], **text}
        del config["dtype"], config["text_config"], config["vision_config"]["rope_parameters"]
        config["vision_config"] |= {"model_type": "qwen2_5_vl", "in_chans": 3}
        if layout.config == "both":
            text["rope_scaling"]["rope_type"] = "default"
            config["text_config"] = text | {"model_type": model_type}
    if layout.leftovers in ("config", "both"):
        config |= {"decoder": DECODER_CONFIG, "encoder": DECODER_CONFIG, "decoders": [DECODER_CONFIG]}
        config |= {"generation_config": {"max_length": 20}, "loss_weights": {"contrastive": 1.0}}
    return config


def _write_weights(weights: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    names, where = sorted(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({name: weights[name] for name in names[i::shards]}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names[i::shards], file)
    size = sum(tensor.nbytes for tensor in weights.values())
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where}
    )


def _write_processor(source: Path, folder: Path, processor: str) -> None:
    if processor == "new":
        for name in ("processor_config.json", "chat_template.jinja"):
            shutil.copy(source / name, folder)
        return
    template = (source / "chat_template.jinja").read_text(encoding="utf-8")
    pictures = read(source / "processor_config.json")["image_processor"]
    if processor == "first":
        size = pictures.pop("size")
        pictures |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        pictures["image_processor_type"] = "Qwen2_5_VLImageProcessor"
        write_json(folder / "chat_template.json", {"chat_template": template})
    else:
        pictures["image_processor_type"] = "Qwen2VLImageProcessorFast"
        change(folder / "tokenizer_config.json", chat_template=template)
    write_json(folder / "preprocessor_config.json", pictures | {"processor_class": "Qwen2_5_VLProcessor"})
