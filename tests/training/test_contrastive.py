"""A batch in parts or with adapters gives the gradients of the whole; test_parallel.py has several
processes.
"""

from inspect import unwrap

import pytest
import torch

from coral_lab import load
from coral_lab.mini.architecture import untrained
from coral_lab.mini.pairs import mini_pairs
from coral_lab.mini.recipe import corpus
from coral_lab.models.forward import normalised
from coral_lab.models.prefixes import last_states
from coral_lab.models.vision import vision_of
from coral_lab.training import contrastive
from coral_lab.training import learner as learner_module
from coral_lab.training.augment import moving
from coral_lab.training.batches import Pair, make_batch
from coral_lab.training.config import StepConfig, TrainConfig
from coral_lab.training.contrastive import contrastive_objective, gradients
from coral_lab.training.from_data import batch_of
from coral_lab.training.learner import Learner
from coral_lab.training.loop import train_loop
from coral_lab.training.lora import add_lora, freeze_vision
from coral_lab.training.losses import info_nce
from coral_lab.training.pairs import pair_sampler
from coral_lab.training.reconstruction import (
    CONTRASTIVE,
    Coral,
    content,
    decoders,
    reconstructions,
    token_embeddings,
)


@pytest.fixture(scope="module")
def pairs(shop):
    return pair_sampler(shop, mini_pairs(shop, negatives=1), batch_size=6, steps=10)(9)


def same(model, heads, pairs):
    """These pairs at every step, with other random numbers."""
    return lambda number: make_batch(
        model, pairs, heads.longest, generator=torch.Generator().manual_seed(number)
    )


def collected(model, heads) -> dict[str, torch.Tensor]:
    named = [*model.network.named_parameters(), *heads.named_parameters()]
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    model.network.zero_grad()
    heads.zero_grad()
    return found


def whole_loss(model, heads, batch, coral):
    """The objective written out: one graph, one sum."""
    vision = vision_of(model, batch.prompts, moving(model, batch.moves))
    queries = last_states(model, batch.queries, vision)
    candidates = last_states(model, batch.positives + batch.negatives, vision)
    loss = info_nce(normalised(queries), normalised(candidates), heads.temperature, batch.also_positive)
    terms = {"contrastive": loss}
    if coral.weights:
        targets = content(model, batch.positives, vision, heads.longest)
        embeddings = token_embeddings(model, batch.positives, targets, vision)
        masks = targets.masks(batch.draws, coral.mask_rate)
        eos = {"reg": queries, "rec": candidates[: len(batch)]}
        terms |= reconstructions(model, heads, coral.weights, embeddings, targets, masks, eos)
    return terms, loss + sum(weight * terms[name] for name, weight in coral.weights.items())


@pytest.mark.parametrize("coral", [CONTRASTIVE, Coral(learn_temperature=True)], ids=["contrastive", "coral"])
@pytest.mark.parametrize("chunk", [None, 4, 1])
def test_gradients_in_parts_are_those_of_the_whole(random_model, pairs, coral, chunk):
    heads = decoders(random_model, coral)
    torch.manual_seed(0)
    batch = make_batch(random_model, pairs, heads.longest, augmented=True)
    terms, loss = whole_loss(random_model, heads, batch, coral)
    loss.backward()
    expected = collected(random_model, heads)
    found = gradients(Learner(random_model, heads, coral), batch, chunk)
    assert 0 < found.pop("padding") < 1
    assert found == pytest.approx({name: value.item() for name, value in terms.items()}, rel=1e-5)
    ours = collected(random_model, heads)
    assert ours.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() / largest < 1e-5, name


def test_a_batch_that_cannot_be_shared_or_cut_is_refused(random_model, pairs, monkeypatch):
    learner = Learner(random_model, decoders(random_model, CONTRASTIVE), CONTRASTIVE)
    batch = make_batch(random_model, pairs)
    with pytest.raises(ValueError, match="at least one pair"):
        gradients(learner, batch, chunk=0)
    monkeypatch.setattr("coral_lab.training.distributed.world_size", lambda: 4)
    with pytest.raises(ValueError, match="a batch of 6 for 4 processes"):
        gradients(learner, batch)
    uneven = [pairs[0], Pair(pairs[1].query, pairs[1].positive)]
    with pytest.raises(ValueError, match=r"queries have \[0, 1\] negatives"):
        make_batch(random_model, uneven)


def test_right_answers_of_another_query_are_no_negatives(random_model, shop):
    query = next(q for q in shop.queries if len(q.positives) >= 2)
    other = next(q for q in shop.queries if not set(q.positives) & set(query.positives))
    first, second = (shop.by_id[id] for id in query.positives[:2])
    stranger = shop.by_id[other.positives[0]]
    batch = make_batch(random_model, [Pair(query, first, (stranger,)), Pair(query, second, (stranger,))])
    assert batch.also_positive.tolist() == [[True, True, False, False]] * 2


def test_of_two_processes_each_gives_half_of_the_temperatures_gradient(monkeypatch):
    """Both work out the loss of the whole batch, and their gradients are summed."""
    rows = [
        torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    ] * 2
    states, also_positive = [[*rows, rows[0][:0]]], torch.zeros(3, 3, dtype=torch.bool)
    found = []
    for processes in (1, 2):
        temperature = torch.tensor(0.3, requires_grad=True)
        monkeypatch.setattr("coral_lab.training.distributed.world_size", lambda: processes)  # noqa: B023
        monkeypatch.setattr("coral_lab.training.distributed.gather", lambda rows: rows)
        unwrap(contrastive._contrast)(states, also_positive, temperature)
        found.append(temperature.grad)
    torch.testing.assert_close(found[1], found[0] / 2)


def test_unless_told_otherwise_a_step_is_of_128_pairs_at_once():
    assert StepConfig() == StepConfig(Coral(), 128, None, 0, "seq", False, "closer", False)


def test_random_numbers_are_drawn_for_what_is_rebuilt_alone(random_model, pairs):
    made = []
    for coral in (CONTRASTIVE, Coral()):
        learner = Learner(random_model, decoders(random_model, coral, longest=50), coral)
        made.append(batch_of(learner, pairs[:2], StepConfig(coral), 0, 0))
    assert [tuple(batch.draws.shape) for batch in made] == [(2, 0), (2, 50)]
    assert make_batch(random_model, pairs[:2]).draws.shape == (2, 0)
    assert [batch.moves for batch in made] == [None, None]


def test_the_objective_takes_the_batch_of_its_number_and_says_what_was_in_it(random_model, pairs):
    learner = Learner(random_model, decoders(random_model, CONTRASTIVE), CONTRASTIVE)
    asked = []

    def batches(number):
        asked.append(number)
        return make_batch(random_model, pairs[:number])

    for chunk in (None, 1):
        step = contrastive_objective(learner, batches, chunk)(2)
        assert [prompt.name for prompt in step.batch] == [prompt.name for prompt in batches(2).prompts]
        assert step.pairs == 2
        assert step.terms.keys() == {"contrastive", "padding"}
    assert set(asked) == {2}
    random_model.network.zero_grad()


def test_hard_negatives_stay_with_their_query(random_model, pairs):
    batch = make_batch(random_model, pairs)
    part = batch.part(range(2, 5))
    assert [p.name for p in part.negatives] == [p.name for p in batch.negatives[2:5]]
    assert [p.name for p in part.positives] == [p.name for p in batch.positives[2:5]]
    assert torch.equal(part.also_positive, batch.also_positive[2:5])


def test_the_objective_learns_a_batch_by_heart(random_folder, pairs, tmp_path):
    """Every term falls when the same six pairs are shown again and again."""
    model, coral = load(random_folder), Coral()
    heads = decoders(model, coral)
    objective = contrastive_objective(Learner(model, heads, coral), same(model, heads, pairs))
    config = TrainConfig(steps=25, learning_rate=3e-3, warmup=3, checkpoint_every=100)
    rows = []
    train_loop(model, objective, config, tmp_path, decoders=heads, on_step=rows.append)
    for name in ("contrastive", *coral.weights):
        assert rows[-1][name] < 0.9 * rows[0][name], name
    assert (tmp_path / "decoders.safetensors").is_file()
    with torch.no_grad():  # inference does not know of the decoders
        batch = make_batch(load(tmp_path), pairs)
    assert len(batch) == 6


@pytest.mark.parametrize("lora", [None, 4])
def test_a_step_of_the_3bs_architecture_with_the_real_vocabulary(shop, pairs, tmp_path, lora):
    """36 and 32 layers, grouped-query attention, 151,936 words as in Qwen2.5-VL-3B; only the width is
    small.
    """
    text = {"num_hidden_layers": 36, "num_attention_heads": 16, "vocab_size": 151_936}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    vision = {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]}
    model = untrained(corpus(shop, limit=100), text=text, vision=vision)
    model.network.save_pretrained(tmp_path / "start")
    model.processor.save_pretrained(tmp_path / "start")
    if lora:
        model = load(tmp_path / "start")
        add_lora(model, lora)
    coral = Coral()
    heads = decoders(model, coral)
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    objective = contrastive_objective(Learner(model, heads, coral), same(model, heads, pairs[:2]), chunk=1)
    train_loop(model, objective, TrainConfig(steps=1, warmup=1), tmp_path / "out", decoders=heads)
    moved = {name for name, p in model.network.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora" in name for name in moved) == bool(lora)
    again = load(tmp_path / "out")
    with torch.no_grad():
        prompts = make_batch(model, pairs[:1]).queries
        model.network.eval()
        ours, loaded = (last_states(m, prompts, vision_of(m, prompts)) for m in (model, again))
    torch.testing.assert_close(ours, loaded, atol=1e-5, rtol=1e-4)


# gradient checkpointing, a tower that stays as it is, adapters


def trained(model):
    """As the loop has it: checkpointing is of layers in training."""
    model.network.train()
    return model


@pytest.mark.parametrize("lora", [None, 4])
@pytest.mark.parametrize("coral", [CONTRASTIVE, Coral()], ids=["contrastive", "coral"])
def test_gradient_checkpointing_gives_the_same_gradients(random_folder, pairs, monkeypatch, coral, lora):
    model = trained(load(random_folder))
    if lora:
        add_lora(model, lora)
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:  # zero at first, and then A has no gradient
                torch.nn.init.normal_(parameter, std=0.1)
    heads = decoders(model, coral)
    batch = make_batch(model, pairs[:4], heads.longest, True, generator=torch.Generator().manual_seed(0))

    def worked_out(chunk=None, **options):
        terms = gradients(Learner(model, heads, coral, **options), batch, chunk)
        del terms["padding"]  # of parts, another
        return terms, collected(model, heads)

    chunks, quick = (None, 3), worked_out()
    found = [worked_out(chunk, checkpointing=True) for chunk in chunks]
    monkeypatch.setattr(Learner, "plain", True)  # as checkpointing has it
    plain = [worked_out(chunk) for chunk in chunks]
    assert quick[1]
    assert all("lora" in name or "by_kind" in name for name in quick[1]) == bool(lora)
    for bound, pairs_of in ((1e-6, zip(found, plain, strict=True)), (1e-5, ((one, quick) for one in found))):
        for (own_terms, own), (terms, expected) in pairs_of:
            largest = max(gradient.abs().max() for gradient in expected.values())
            assert own_terms == pytest.approx(terms, rel=1e-5)
            assert own.keys() == expected.keys()
            for name, gradient in expected.items():
                assert (own[name] - gradient).abs().max() / largest < bound, name


def test_gradient_checkpointing_keeps_less_and_is_over_with_its_learner(random_folder, pairs):
    model, kept = trained(load(random_folder)), []
    heads = decoders(model, CONTRASTIVE)
    batch, found = make_batch(model, pairs[:2]), []

    def pack(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for checkpointing in (False, True, False):
        learner = Learner(model, heads, CONTRASTIVE, checkpointing)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            gradients(learner, batch)
        found.append(collected(model, heads))
    assert kept[1] < kept[0] / 2
    assert kept[2] == kept[0]
    assert all(torch.equal(gradient, found[2][name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("coral", [CONTRASTIVE, Coral()], ids=["contrastive", "coral"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_tower_sees_each_part_once_and_gets_no_gradients(
    random_folder, pairs, monkeypatch, coral, frozen
):
    model, seen = load(random_folder), []
    heads = decoders(model, coral)
    if frozen:
        freeze_vision(model)
    look = learner_module.vision_of_pixels

    def counting(model, pixels, *own, **more):
        seen.append(len(pixels))
        return look(model, pixels, *own, **more)

    monkeypatch.setattr(learner_module, "vision_of_pixels", counting)
    batch = make_batch(model, pairs, heads.longest, generator=torch.Generator().manual_seed(0))
    terms = [gradients(Learner(model, heads, coral), batch, chunk=2)]
    assert len(seen) == (3 if frozen else 6)
    assert all(seen)
    found = collected(model, heads)
    assert any("visual" in name for name in found) == (not frozen)
    terms.append(gradients(Learner(model, heads, coral), batch))
    assert len(seen) == (4 if frozen else 7)
    for own in terms:
        del own["padding"]  # of parts, another
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)
    whole = collected(model, heads)
    largest = max(gradient.abs().max() for gradient in whole.values())
    assert whole.keys() == found.keys()
    assert all((found[name] - gradient).abs().max() / largest < 1e-5 for name, gradient in whole.items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_of_a_network_in_bfloat16_learn_in_float32_and_nothing_else_does(
    random_folder, pairs, tmp_path, checkpointing
):
    model = load(random_folder, dtype="bfloat16")
    add_lora(model, 4)
    learning = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora" in name for name in learning)
    assert {p.dtype for p in learning.values()} == {torch.float32}
    others = {name: p for name, p in model.network.named_parameters() if not p.requires_grad}
    assert {p.dtype for p in others.values()} == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    heads, config = decoders(model, CONTRASTIVE), TrainConfig(steps=2, warmup=1, learning_rate=1e-2)
    learner = Learner(model, heads, CONTRASTIVE, checkpointing)
    objective = contrastive_objective(learner, same(model, heads, pairs[:3]), 2)
    train_loop(model, objective, config, tmp_path)
    changed = {name for name, p in model.network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == learning.keys()


def test_padding_is_its_share_of_what_is_read(random_model, pairs, monkeypatch):
    """Rows that are read one by one have none."""
    learner = Learner(random_model, decoders(random_model, CONTRASTIVE), CONTRASTIVE)
    batch = make_batch(random_model, pairs)
    monkeypatch.setattr(learner_module, "ROWS", 1)
    assert gradients(learner, batch)["padding"] == 0
    monkeypatch.undo()
    counted = [0, 0]
    tokenize = learner_module.tokenize

    def counting(*own):
        found = tokenize(*own)
        counted[0] += int(found["attention_mask"].sum())
        counted[1] += found["attention_mask"].numel()
        return found

    monkeypatch.setattr(learner_module, "tokenize", counting)
    assert gradients(learner, batch)["padding"] == pytest.approx(1 - counted[0] / counted[1])
    random_model.network.zero_grad()
