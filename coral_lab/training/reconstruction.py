"""Coral's reconstruction (arXiv 2506.03144): can an item be rebuilt from one vector?

E is an item's own tokens as they enter the text model: its pictures' features and its words' embeddings,
without the chat template, whose constant words need no rebuilding. Half of its pictures, or of its words, is
hidden; a one-layer decoder reads what is left and h_eos, and says what was hidden:

    L_reg   the target from the query's h_eos: the query must tell what it is looking for
    L_rec   an item from its own h_eos: the embedding must keep what it stands for

    L = L_cl + λ1 L_reg + λ2 L_rec,  each of the two a sum of vision and language

Which items, sources do not say alike, so `Coral.reconstruct` chooses:

    "target"  the retrieval target twice, by L_reg and by L_rec. So the paper's formulas were noted when this
              was first written; that section could not be read again to check it.
    "query"   the query alone, from its own h_eos: pictures, titles and the words of its instruction.
    "both"    all of it: L_reg, and L_rec of the target and of the query. The model card, and the caption of
              the paper's figure of the method: "we reconstruct both the query and its corresponding positive
              sample". From whose h_eos neither says; lambda1=0 leaves each its own alone.

The authors' repository (weichow23/merit, commit 98a63a4) has no training code that would settle it.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from coral_lab.errors import CheckpointError, ItemError
from coral_lab.models import cpu_linear
from coral_lab.models.forward import tokenize
from coral_lab.models.inputs import Prompt
from coral_lab.models.loading import checkpoint_folder
from coral_lab.models.model import Model
from coral_lab.models.pixels import key
from coral_lab.models.vision import Vision
from coral_lab.sources.border import brief
from coral_lab.training.losses import masked_language_modelling, vision_reconstruction

REBUILT = {"reg": "target", "rec": "target", "query": "query"}
"""What each term rebuilds: "reg" is L_reg, "rec" and "query" are L_rec of the target and of the query."""

LONGEST = {"target": 1024, "query": 4096, "both": 4096}
"""Tokens that decoders read by what is rebuilt: a query has up to four pictures, a target one."""


@dataclass(frozen=True)
class Coral:
    """Weights of the objective; a term whose weight is 0 is not computed.

    `lambda1` and `lambda2` weigh L_reg and L_rec, `vision` and `language` the two kinds within each;
    `mask_rate` is δ, the share of tokens that is hidden; `temperature` is τ, where it starts if it is
    learned. `reconstruct` is one of LONGEST's names, as said above. With `shuffled` each item is rebuilt from
    the h_eos of another row of the batch (`PairBatch.shuffled`): the same work, and nothing to be known from
    it. It is the control of an ablation.
    """

    lambda1: float | int = 0.2
    lambda2: float | int = 0.2
    vision: float | int = 1.0
    language: float | int = 1.0
    mask_rate: float | int = 0.5
    temperature: float | int = 0.04
    learn_temperature: bool = False
    reconstruct: str = "target"
    shuffled: bool = False

    def __post_init__(self):
        if self.reconstruct not in LONGEST:
            names = ", ".join(map(repr, LONGEST))
            raise ValueError(f"reconstruct is {brief(self.reconstruct)}; use one of {names}")
        if min(self.lambda1, self.lambda2, self.vision, self.language) < 0 or self.temperature <= 0:
            raise ValueError(f"{self} has a negative weight or temperature; weights are 0 or more")
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate is {self.mask_rate}; it is a share, above 0 and up to 1")
        if self.shuffled and not self.weights:
            raise ValueError("shuffled is set, and nothing is rebuilt; give lambda1 or lambda2")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reconstruction that is on, by its name: "reg vision", "reg language", "rec vision",
        "rec language", "query vision", "query language".
        """
        sources = {} if self.reconstruct == "query" else {"reg": self.lambda1, "rec": self.lambda2}
        if self.reconstruct != "target":
            sources["query"] = self.lambda2
        kinds = {"vision": self.vision, "language": self.language}
        products = {f"{source} {kind}": a * b for source, a in sources.items() for kind, b in kinds.items()}
        return {name: weight for name, weight in products.items() if weight}

    @property
    def rebuilt(self) -> tuple[str, ...]:
        """What is rebuilt: "target", "query", both or nothing."""
        return tuple(dict.fromkeys(REBUILT[name.split()[0]] for name in self.weights))


CORAL = Coral()
"""As shipped: what the paper calls Coral, weighed for coral-mini."""

CONTRASTIVE = Coral(lambda1=0.0, lambda2=0.0)
"""L_cl alone."""


class Decoder(nn.Module):
    """One BERT-style layer: reads [MASK(E) ; h_eos] and gives a vector for each place of E.

    As in BERT, what is read is normalised first. Here it is no detail: picture features are 40 times as long
    as word embeddings, and without it coral-mini's decoders had not found h_eos after 1,000 steps.
    """

    def __init__(self, dim: int, longest: int):
        super().__init__()
        self.mask = nn.Parameter(torch.randn(dim) * 0.02)
        self.position = nn.Embedding(longest + 1, dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)
        heads = max(1, dim // 64)
        # No dropout: a part of a batch, seen twice by GradCache, must be the same both times.
        self.layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        embeddings: Float[Tensor, "row place dim"],
        masked: Bool[Tensor, "row place"],
        padding: Bool[Tensor, "row place"],
        eos: Float[Tensor, "row dim"],
    ) -> Float[Tensor, "row place dim"]:
        """h_eos comes first, so that its position is the same for every length; attention knows no order
        else.
        """
        embeddings, eos = (layer_norm(x, x.shape[-1:]) for x in (embeddings, eos))
        tokens = torch.where(masked[..., None], self.mask.to(embeddings.dtype), embeddings)
        tokens = torch.cat([eos[:, None].to(tokens.dtype), tokens], dim=1)
        tokens = self.norm(tokens + self.position.weight[: tokens.shape[1]])
        hidden = self.layer(tokens, src_key_padding_mask=nn.functional.pad(padding, (1, 0), value=False))
        return self.out(hidden[:, 1:])


class Decoders(nn.Module):
    """What is trained beside the model and thrown away after: two decoders, and the temperature."""

    def __init__(self, dim: int, coral: Coral, longest: int = 1024):
        super().__init__()
        kinds = {name.split()[1] for name in coral.weights}
        self.longest = longest
        self.by_kind = nn.ModuleDict({kind: Decoder(dim, longest) for kind in sorted(kinds)})
        log_temperature = torch.tensor(math.log(coral.temperature))
        self.log_temperature = nn.Parameter(log_temperature, requires_grad=coral.learn_temperature)
        cpu_linear.use(self)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        return self.log_temperature.exp()


def decoders(model: Model, coral: Coral, seed: int = 0, longest: int | None = None) -> Decoders:
    """Randomly initialised decoders that fit `model`, on its device, for items of up to `longest` tokens, by
    default LONGEST. One pair of them rebuilds whatever is rebuilt, as the paper has one of each kind.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoders(model.dim, coral, longest or LONGEST[coral.reconstruct]).to(model.device)


def load_decoders(model: Model, name: str | os.PathLike) -> Decoders:
    """The decoders that were trained with a checkpoint, from `decoders.safetensors` in its folder.

    `name` is a shipped name, a folder or a hub id, as for `load`. Raises CheckpointError if there are none,
    or they are of another width.
    """
    file = checkpoint_folder(str(name)) / "decoders.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; train the checkpoint with stage coral to get decoders")
    state = load_file(file)
    kinds = {name.split(".")[1] for name in state if name.startswith("by_kind.")}
    longest = next((len(w) - 1 for name, w in state.items() if name.endswith("position.weight")), 1)
    coral = Coral(vision=float("vision" in kinds), language=float("language" in kinds))
    found = Decoders(model.dim, coral, longest)
    try:
        found.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit {model.name}: {error}") from error
    return found.to(model.device).eval()


@dataclass(frozen=True)
class Content:
    """The items' own tokens, padded on the right: what can be hidden is a picture's token or a word's."""

    ids: Int[Tensor, "row place"]
    pictures: Bool[Tensor, "row place"]
    words: Bool[Tensor, "row place"]
    padding: Bool[Tensor, "row place"]

    def masks(self, draws: Float[Tensor, "row number"], rate: float) -> dict[str, Bool[Tensor, "row place"]]:
        """Places to hide: those whose number, uniform in [0, 1), is below `rate`."""
        low = draws[:, : self.ids.shape[1]].to(self.ids.device) < rate
        return {"vision": self.pictures & low, "language": self.words & low}


def content(model: Model, prompts: Sequence[Prompt], vision: Vision, longest: int) -> Content:
    """The tokens between the last user turn's header and its end. Raises ItemError for more than
    `longest`.
    """
    tokenizer = model.processor.tokenizer
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    header = len(tokenizer("user\n")["input_ids"])
    batch = tokenize(model, prompts, vision)
    rows = []
    for prompt, ids in zip(prompts, batch["input_ids"], strict=True):
        turn = (ids == start).nonzero()[-2, 0] + 1 + header
        row = ids[turn : (ids == end).nonzero()[-1, 0]]
        if len(row) > longest:
            raise ItemError(
                prompt.name, f"has {len(row):,} tokens and the decoders read {longest:,}; make them longer"
            )
        rows.append(row)
    special = torch.tensor(tokenizer.all_special_ids)
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    padding = torch.arange(ids.shape[1]) >= torch.tensor([len(row) for row in rows])[:, None]
    pictures = (ids == model.processor.image_token_id) & ~padding
    words = ~torch.isin(ids, special) & ~padding
    return Content(*(tensor.to(model.device) for tensor in (ids, pictures, words, padding)))


def token_embeddings(
    model: Model, prompts: Sequence[Prompt], content: Content, vision: Vision
) -> Float[Tensor, "row place dim"]:
    """E = [e_img ; e_txt]: what the text model reads at each place."""
    embeddings = model.network.get_input_embeddings()(content.ids)
    features = [vision.features[key(picture)] for prompt in prompts for picture in prompt.pictures]
    if not features:
        return embeddings
    embeddings = embeddings.clone()
    embeddings[content.pictures] = torch.cat(features).to(embeddings.dtype)
    return embeddings


def reconstructions(
    model: Model,
    decoders: Decoders,
    weights: Mapping[str, float],
    embeddings: Float[Tensor, "row place dim"],
    content: Content,
    masks: Mapping[str, Bool[Tensor, "row place"]],
    eos: Mapping[str, Float[Tensor, "row dim"]],
    counts: Mapping[str, float | int] | None = None,
    head: Float[Tensor, "vocabulary dim"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """The losses named in `weights`, unweighted. `eos` has the h_eos that each of them starts from: for
    targets the query's ("reg") and their own ("rec"), for queries their own ("query").

    `counts` are the numbers of masked places of the whole batch if this is a part of it, `head` the LM head's
    weight, by default the model's own, which learns with it. (Nine parameters: each is a tensor or a weight
    of the paper's formula.)
    """
    counts, losses = counts or {}, {}
    head = model.network.get_output_embeddings().weight if head is None else head
    for kind, decoder in decoders.by_kind.items():
        sources = [source for source in eos if f"{source} {kind}" in weights]
        rows = len(sources)  # one call for both: the same hidden places, another h_eos
        hidden = decoder(
            embeddings.repeat(rows, 1, 1),
            masks[kind].repeat(rows, 1),
            content.padding.repeat(rows, 1),
            torch.cat([eos[source] for source in sources]),
        )
        for source, part in zip(sources, hidden.chunk(rows), strict=True):
            if kind == "vision":
                # Detached and normalised: rebuilding must not make the pictures' features dull.
                target = layer_norm(embeddings.detach().float(), embeddings.shape[-1:])
                losses[f"{source} vision"] = vision_reconstruction(
                    part, target, masks["vision"], counts.get("vision")
                )
            else:
                losses[f"{source} language"] = masked_language_modelling(
                    part, head, content.ids, masks["language"], counts.get("language")
                )
    return losses
