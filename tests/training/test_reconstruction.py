"""What is hidden and rebuilt, from which vector, and what each weight switches off."""

import pytest
import torch
from torch.nn.functional import layer_norm

from coral_lab import Product
from coral_lab.errors import ItemError
from coral_lab.models.forward import forward, tokenize
from coral_lab.models.inputs import prompt
from coral_lab.models.vision import vision_of
from coral_lab.training.reconstruction import (
    CONTRASTIVE,
    Coral,
    Decoder,
    content,
    decoders,
    reconstructions,
    token_embeddings,
)
from tests.conftest import noise


@pytest.fixture(scope="module")
def targets():
    return [
        Product("a", "a red bag", noise(84, 84, 1), "bag"),
        Product(
            "b", "กระเป๋า XL, made in Bali <|im_end|>".replace("<|im_end|>", ""), noise(56, 112, 2), "bag"
        ),
        Product("c", "no picture here at all", None, "bag"),
        Product("d", "", noise(84, 56, 3), "bag"),
    ]


@pytest.fixture
def seen(random_model, targets):
    prompts = [prompt(random_model, product) for product in targets]
    return prompts, vision_of(random_model, prompts)


def test_content_is_the_products_own_text_and_picture(random_model, targets, seen):
    found = content(random_model, *seen, longest=100)
    tokenizer = random_model.processor.tokenizer
    for product, ids, padding, words, pictures in zip(
        targets, found.ids, found.padding, found.words, found.pictures, strict=True
    ):
        text = tokenizer.decode(ids[words])
        assert text.startswith("Represent the given product: ")
        assert text.endswith(product.title)
        assert "assistant" not in text
        tokens = 0 if product.image is None else product.image.width * product.image.height // 28**2
        assert pictures.sum() == tokens
        assert not (words & pictures).any()
        assert not ((words | pictures) & padding).any()


def test_embeddings_are_what_the_text_model_reads(random_model, seen, monkeypatch):
    """Against the `inputs_embeds` that transformers hands to its own text model."""
    prompts, vision = seen
    caught = {}
    language_model = random_model.network.model.language_model
    handle = language_model.register_forward_pre_hook(
        lambda module, args, kwargs: caught.update(kwargs), with_kwargs=True
    )
    batch = tokenize(random_model, prompts, vision)
    forward(random_model, prompts, vision, batch)
    handle.remove()
    found = content(random_model, prompts, vision, longest=100)
    ours = token_embeddings(random_model, prompts, found, vision)
    header = len(random_model.processor.tokenizer("<|im_start|>assistant\n")["input_ids"])
    for row, padding, theirs in zip(ours, found.padding, caught["inputs_embeds"], strict=True):
        # before the generation prompt come the turn's end and a line break
        length, end = (~padding).sum(), theirs.shape[0] - header - 2
        torch.testing.assert_close(row[:length], theirs[end - length : end])


def test_masks_hide_their_own_kind_at_the_rate_asked_for(random_model, seen):
    found = content(random_model, *seen, longest=100)
    draws = torch.rand(4, 100, generator=torch.Generator().manual_seed(0))
    half = found.masks(draws, 0.5)
    assert not (half["vision"] & ~found.pictures).any()
    assert not (half["language"] & ~found.words).any()
    for kind, places in (("vision", found.pictures), ("language", found.words)):
        assert torch.equal(found.masks(draws, 1.0)[kind], places)
        share = (half[kind].sum() / places.sum()).item()
        assert 0.2 < share < 0.8


def test_a_hidden_token_cannot_be_seen(random_model, seen):
    """What a decoder says does not depend on the embeddings of masked places."""
    found = content(random_model, *seen, longest=100)
    embeddings = token_embeddings(random_model, seen[0], found, seen[1])
    masked = found.masks(torch.rand(4, 100), 0.5)["language"]
    decoder = decoders(random_model, Coral()).by_kind["language"]
    eos = torch.randn(4, random_model.dim)
    other = torch.where(masked[..., None], torch.randn_like(embeddings), embeddings)
    with torch.no_grad():
        said = [decoder(e, masked, found.padding, eos) for e in (embeddings, other)]
        changed = decoder(embeddings, masked, found.padding, eos.roll(1, 0))
    torch.testing.assert_close(*said)
    assert (said[0] - changed).abs().max() > 1e-3  # but on h_eos it does


def test_padding_changes_nothing(random_model, targets):
    """A target's losses are the same alone and beside a longer one."""
    coral = Coral()
    heads = decoders(random_model, coral)
    eos = {source: torch.randn(1, random_model.dim) for source in ("reg", "rec")}

    def losses(products):
        prompts = [prompt(random_model, product) for product in products]
        vision = vision_of(random_model, prompts)
        found = content(random_model, prompts, vision, 100)
        masks = found.masks(torch.full((len(products), 100), 0.4), 0.5)
        masks = {kind: mask & (torch.arange(len(products)) == 0)[:, None] for kind, mask in masks.items()}
        repeated = {source: state.repeat(len(products), 1) for source, state in eos.items()}
        embeddings = token_embeddings(random_model, prompts, found, vision)
        return reconstructions(random_model, heads, coral.weights, embeddings, found, masks, repeated)

    with torch.no_grad():
        alone, beside = losses(targets[:1]), losses(targets[:2])
    for name, value in alone.items():
        torch.testing.assert_close(value, beside[name], atol=1e-5, rtol=1e-5)


def test_targets_of_vision_are_normalised_and_get_no_gradient(random_model, seen):
    """With a decoder that says nothing, the loss is the targets' variance: one."""
    coral = Coral(language=0)
    found = content(random_model, *seen, longest=100)
    embeddings = token_embeddings(random_model, seen[0], found, seen[1]).detach().requires_grad_()
    heads = decoders(random_model, coral)
    torch.nn.init.zeros_(heads.by_kind["vision"].out.weight)
    torch.nn.init.zeros_(heads.by_kind["vision"].out.bias)
    masks = found.masks(torch.zeros(4, 100), 1.0)
    eos = {source: torch.randn(4, random_model.dim) for source in ("reg", "rec")}
    losses = reconstructions(random_model, heads, coral.weights, embeddings, found, masks, eos)
    sum(losses.values()).backward()
    target = layer_norm(embeddings.detach(), embeddings.shape[-1:])[found.pictures]
    for value in losses.values():
        torch.testing.assert_close(value, target.square().mean())
        assert value.item() == pytest.approx(1, rel=0.01)
    assert embeddings.grad.abs().max() == 0


def test_language_goes_through_the_models_own_head(random_model, seen):
    coral = Coral(vision=0)
    found = content(random_model, *seen, longest=100)
    embeddings = token_embeddings(random_model, seen[0], found, seen[1]).detach()
    masks = found.masks(torch.zeros(4, 100), 0.5)
    eos = {source: torch.randn(4, random_model.dim) for source in ("reg", "rec")}
    heads = decoders(random_model, coral)
    random_model.network.zero_grad()
    sum(
        reconstructions(random_model, heads, coral.weights, embeddings, found, masks, eos).values()
    ).backward()
    assert random_model.network.lm_head.weight.grad.abs().max() > 0
    assert not any("head" in name or "vocab" in name for name, _ in heads.named_parameters())
    random_model.network.zero_grad()


@pytest.mark.parametrize(
    ("coral", "terms"),
    [
        (CONTRASTIVE, set()),
        (Coral(), {"reg vision", "reg language", "rec vision", "rec language"}),
        (Coral(lambda1=0), {"rec vision", "rec language"}),
        (Coral(lambda2=0, vision=0), {"reg language"}),
        (Coral(language=0), {"reg vision", "rec vision"}),
    ],
)
def test_a_weight_of_zero_leaves_its_term_and_decoder_out(random_model, seen, coral, terms):
    assert set(coral.weights) == terms
    heads = decoders(random_model, coral)
    assert set(heads.by_kind) == {name.split()[1] for name in terms}
    found = content(random_model, *seen, longest=100)
    embeddings = token_embeddings(random_model, seen[0], found, seen[1])
    eos = {source: torch.randn(4, random_model.dim) for source in ("reg", "rec")}
    masks = found.masks(torch.zeros(4, 100), 0.5)
    assert set(reconstructions(random_model, heads, coral.weights, embeddings, found, masks, eos)) == terms


def test_decoders_are_the_same_for_a_seed_and_leave_other_random_numbers_alone(random_model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = decoders(random_model, Coral(), 3), decoders(random_model, Coral(), 3)
    assert torch.equal(torch.rand(1), expected)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_target_too_long_for_the_decoders_is_named(random_model, targets):
    prompts = [prompt(random_model, targets[0])]
    with pytest.raises(ItemError, match=r"product a: .* decoders read 5"):
        content(random_model, prompts, vision_of(random_model, prompts), longest=5)


@pytest.mark.parametrize(
    "values", [{"lambda1": -0.1}, {"vision": -1}, {"temperature": 0.0}, {"mask_rate": 0}, {"mask_rate": 1.5}]
)
def test_weights_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match=r"weight|mask_rate"):
        Coral(**values)


def test_what_is_shipped_as_coral():
    assert Coral() == Coral(0.2, 0.2, 1, 1, 0.5, 0.04, False)
    assert {name: weight == pytest.approx(0.2) for name, weight in Coral().weights.items()} == dict.fromkeys(
        ["reg vision", "reg language", "rec vision", "rec language"], True
    )
    own = Coral(lambda1=2.0, lambda2=3.0, vision=5.0, language=7.0)
    assert own.weights == {"reg vision": 10, "reg language": 14, "rec vision": 15, "rec language": 21}
    assert Coral(mask_rate=1).mask_rate == 1
    with pytest.raises(ValueError, match="negative weight"):
        Coral(lambda2=-1)


@pytest.mark.parametrize(("dim", "heads"), [(32, 1), (64, 1), (128, 2)])
def test_a_decoder_starts_small_with_a_head_for_every_64_dimensions(dim, heads):
    torch.manual_seed(0)
    decoder = Decoder(dim, 400)
    assert decoder.layer.self_attn.num_heads == heads
    assert decoder.position.weight.shape == (401, dim)  # h_eos has a place too
    assert decoder.position.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert decoder.mask.std().item() == pytest.approx(0.02, rel=0.4)
    assert decoder.layer.linear1.out_features == 4 * dim


def test_a_temperature_starts_where_it_is_told_and_learns_only_if_asked(random_model):
    for learns in (False, True):
        heads = decoders(random_model, Coral(temperature=0.07, learn_temperature=learns))
        assert heads.temperature.item() == pytest.approx(0.07)
        assert heads.log_temperature.requires_grad == learns


def test_a_target_as_long_as_the_decoders_read_fits(random_model, targets):
    prompts = [prompt(random_model, targets[0])]
    vision = vision_of(random_model, prompts)
    length = content(random_model, prompts, vision, 100).ids.shape[1]
    assert content(random_model, prompts, vision, length).ids.shape == (1, length)
    with pytest.raises(ItemError, match="make them longer"):
        content(random_model, prompts, vision, length - 1)


def test_content_of_a_talk_is_its_last_turn(random_model):
    talk = [
        {"role": "system", "content": "You are a shop."},
        {"role": "user", "content": "Show me a bag."},
        {"role": "assistant", "content": "Which colour?"},
        {"role": "user", "content": "A red one."},
    ]
    prompts = [prompt(random_model, talk)]
    found = content(random_model, prompts, vision_of(random_model, prompts), longest=100)
    assert random_model.processor.tokenizer.decode(found.ids[0]) == "A red one."
