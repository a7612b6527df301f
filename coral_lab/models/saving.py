"""Writing a checkpoint that transformers, coral_lab and sentence-transformers all load, with a model card."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from coral_lab.errors import one_line
from coral_lab.models import quantizing
from coral_lab.models.families import CORAL, FAMILIES, FIELD, Family
from coral_lab.models.model import Model
from coral_lab.sources.files import check_target, output_folder, write_text

MARK = "<!-- written by coral_lab; replace it, and it stays yours -->"


def save(
    model: Model,
    folder: str | os.PathLike,
    facts: Mapping[str, object] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint that transformers, coral_lab and `SentenceTransformer(folder)` all load by its
    path alone.

    With LoRA adapters only these are written; `load` merges them into the model they were trained on. Beside
    it goes a model card, `README.md`, with `facts` such as how it was trained; one that somebody else wrote
    stays. `weights` stand for the network's own where these are sharded. Raises ValueError for a link in a
    file's place, and for a quantised model.
    """
    quantizing.check_whole(model.network, model.name, "saved")
    folder = output_folder(folder)
    adapter = getattr(model.network, "_hf_peft_config_loaded", False)
    with TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as made:
        model.network.save_pretrained(made, state_dict=dict(weights) if weights else None)
        model.processor.save_pretrained(made)
        _say_family(Path(made) / "config.json", model.family)
        _move(Path(made), folder)
    card = folder / "README.md"
    check_target(card)
    if not card.exists() or MARK in card.read_text(encoding="utf-8"):
        write_text(card, model_card(model, folder.name, facts or {}, adapter))
    if adapter or not model.family.by_template:  # what follows the template has no place in their files
        return
    for name, content in _sentence_transformers_files(model.dim).items():
        output_folder((folder / name).parent)
        write_text(folder / name, json.dumps(content, indent=2) + "\n")


def _say_family(config: Path, family: Family) -> None:
    """So that what is loaded again is asked in the same words; CORAL's are what nothing is said of."""
    if family.name in FAMILIES and family is not CORAL and config.exists():
        found = json.loads(config.read_text(encoding="utf-8"))
        write_text(config, json.dumps(found | {FIELD: family.name}, indent=2) + "\n")


WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def _move(made: Path, folder: Path) -> None:
    """Each file into its place, and weights that were there and are no more of it away, as transformers
    does. Every place is looked at before the first is taken.
    """
    (made / ".mode").touch()
    mode = (made / ".mode").stat().st_mode  # as the umask says; safetensors lets nobody else read its files
    (made / ".mode").unlink()
    names = [file.relative_to(made) for file in sorted(made.rglob("*")) if file.is_file()]
    for name in names:
        output_folder((folder / name).parent)
        check_target(folder / name)
    kinds = {name.name.startswith("adapter_") for name in names if WEIGHTS.fullmatch(name.name)}
    for name in names:
        (made / name).chmod(mode)
        os.replace(made / name, folder / name)
    for file in folder.iterdir():
        old = WEIGHTS.fullmatch(file.name) and file.relative_to(folder) not in names
        if old and file.name.startswith("adapter_") in kinds:
            file.unlink()


def model_card(model: Model, name: str, facts: Mapping[str, object], adapter: bool = False) -> str:
    """What a reader of the folder needs: what it is, how it is loaded, how an embedding is made, and
    further `facts`.
    """
    millions = sum(p.numel() for p in model.network.parameters()) / 1e6
    known = {
        "architecture": f"{type(model.network).__name__}, {millions:,.1f} M parameters",
        "embedding": f"last hidden state of the last token, L2-normalised, {model.dim} dimensions",
        "prompt": PROMPT if model.family is CORAL else f"as {model.family.title}'s: {model.family.source}",
        "started from": model.name,
        **facts,
    }
    rows = "\n".join(f"| {key} | {one_line(str(value), 10_000)} |" for key, value in known.items())
    peers = "" if adapter or not model.family.by_template else SENTENCE_TRANSFORMERS
    kind = model.network.config.model_type
    return CARD.format(name=name, mark=MARK, kind=kind, rows=rows, peers=peers)


PROMPT = "chat template with a generation prompt; a product after `Represent the given product: `"

CARD = """---
library_name: transformers
pipeline_tag: feature-extraction
tags: [multimodal-retrieval, interleaved-queries, {kind}, coral]
---
{mark}
# {name}

An embedding model for interleaved multi-condition product queries (the task of MERIT, arXiv 2506.03144).

| | |
|---|---|
{rows}

```python
import coral_lab as cl

model = cl.load("path/to/{name}")
embeddings = cl.encode(model, [product, query])
```
{peers}
## Citation

The task, the dataset and the objective are of: W. Chow et al., *MERIT: Multilingual Semantic Retrieval with
Interleaved Multi-Condition Query*, NeurIPS 2025, [arXiv 2506.03144](https://arxiv.org/abs/2506.03144). This
model was trained and measured by coral_lab, not by its authors.
"""

SENTENCE_TRANSFORMERS = """
`SentenceTransformer("path/to/this/folder")` loads it too, and pools the same token (`modules.json`).
"""


def _sentence_transformers_files(dim: int) -> dict[str, list | dict]:
    """Last-token pooling after the generation prompt; without these files mean pooling would be taken."""
    modules = {
        "": "sentence_transformers.base.modules.transformer.Transformer",
        "1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "2_Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    reads = {"method": "forward", "method_output_name": "last_hidden_state"}
    kinds = {"text": reads, "image": reads, "message": reads | {"format": "structured"}}
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (path, kind) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": kinds,
            "module_output_name": "token_embeddings",
            "processing_kwargs": {"chat_template": {"add_generation_prompt": True}},
        },
        "1_Pooling/config.json": {
            "embedding_dimension": dim,
            "pooling_mode": "lasttoken",
            "include_prompt": True,
        },
        "2_Normalize/config.json": {
            "module_input_name": "sentence_embedding",
            "module_output_name": "sentence_embedding",
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "similarity_fn_name": "cosine",
        },
    }
