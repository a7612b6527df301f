"""What Coral rebuilds, and from whose h_eos: each reading, its control, and decoders that come first."""

from argparse import Namespace
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

import coral_lab as cl
from coral_lab.cli import learning, main
from coral_lab.errors import ItemError
from coral_lab.mini.pairs import mini_pairs
from coral_lab.models.forward import normalised
from coral_lab.models.inputs import prompt
from coral_lab.models.pixels import key
from coral_lab.models.prefixes import last_states
from coral_lab.models.vision import vision_of
from coral_lab.training import from_data, loop
from coral_lab.training.augment import moving
from coral_lab.training.batches import make_batch
from coral_lab.training.config import StepConfig, TrainConfig, learning_rate
from coral_lab.training.contrastive import contrastive_objective, gradients
from coral_lab.training.learner import Learner
from coral_lab.training.loop import train_loop
from coral_lab.training.losses import info_nce
from coral_lab.training.pairs import pair_sampler
from coral_lab.training.rebuilding import rebuild
from coral_lab.training.reconstruction import (
    CONTRASTIVE,
    LONGEST,
    REBUILT,
    Coral,
    Decoders,
    content,
    decoders,
    load_decoders,
    reconstructions,
    token_embeddings,
)

TARGET, QUERY, BOTH = (Coral(reconstruct=name) for name in ("target", "query", "both"))
SHUFFLED = Coral(reconstruct="both", shuffled=True)


@pytest.fixture(scope="module")
def pairs(shop):
    return pair_sampler(shop, mini_pairs(shop, negatives=1), batch_size=5, steps=10)(9)


@pytest.fixture(scope="module")
def batch(random_model, pairs):
    own = torch.Generator().manual_seed(0)
    return make_batch(random_model, pairs, LONGEST["both"], augmented=True, generator=own)


def learner(model, coral):
    return Learner(model, decoders(model, coral, longest=LONGEST["both"]), coral)


def lent(batch, coral):
    return batch.shuffled(coral.rebuilt) if coral.shuffled else batch


def worked_out(model, batch, coral, chunk=None, **more):
    """Terms without padding, and all gradients by name."""
    own = learner(model, coral)
    terms = gradients(own, lent(batch, coral), chunk, **more)
    del terms["padding"]
    named = [*model.network.named_parameters(), *own.decoders.named_parameters()]
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    model.network.zero_grad()
    return terms, found


def assert_near(ours, expected, bound=1e-5):
    assert ours.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() / largest < bound, name


def written_out(model, batch, coral, rows=None):
    """The objective as one graph and one sum; `rows` are whose h_eos each row's items are rebuilt from."""
    own = learner(model, coral)
    vision = vision_of(model, batch.prompts, moving(model, batch.moves))
    queries = last_states(model, batch.queries, vision)
    candidates = last_states(model, batch.positives + batch.negatives, vision)
    loss = info_nce(normalised(queries), normalised(candidates), own.temperature, batch.also_positive)
    terms, rows = {"contrastive": loss}, rows or list(range(len(batch)))
    eos = {"reg": queries[rows], "rec": candidates[: len(batch)][rows], "query": queries[rows]}
    shown = {"target": (batch.positives, batch.draws), "query": (batch.queries, batch.draws.flip(1))}
    for item in coral.rebuilt:
        prompts, draws = shown[item]
        found = content(model, prompts, vision, own.decoders.longest)
        embeddings, masks = token_embeddings(model, prompts, found, vision), found.masks(draws, 0.5)
        some = {source: states for source, states in eos.items() if REBUILT[source] == item}
        terms |= reconstructions(model, own.decoders, coral.weights, embeddings, found, masks, some)
    return own, terms, loss + sum(weight * terms[name] for name, weight in coral.weights.items())


# the readings


def test_what_each_reading_weighs():
    target = {"reg vision", "reg language", "rec vision", "rec language"}
    query = {"query vision", "query language"}
    assert [set(coral.weights) for coral in (TARGET, QUERY, BOTH)] == [target, query, target | query]
    assert [coral.rebuilt for coral in (TARGET, QUERY, BOTH)] == [
        ("target",),
        ("query",),
        ("target", "query"),
    ]
    card = Coral(lambda1=0.0, lambda2=3.0, vision=5.0, language=0.0, reconstruct="both")
    assert card.weights == {"rec vision": 15, "query vision": 15}  # each from its own h_eos
    assert Coral(lambda2=0, reconstruct="both").rebuilt == ("target",)
    assert Coral(lambda2=0, reconstruct="query").weights == CONTRASTIVE.weights == {}


def test_the_target_is_rebuilt_by_default_as_it_always_was(random_model, pairs):
    """To the bit: first weights, numbers and losses of the formula before there was a choice."""
    assert Coral() == TARGET
    torch.manual_seed(3)
    expected = Decoders(random_model.dim, Coral(), 1024)
    found = decoders(random_model, Coral(), 3)
    assert found.longest == 1024
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)
    batch = from_data.batch_of(Learner(random_model, found, Coral()), pairs, StepConfig(Coral()), 2, 7)
    numbers = torch.rand(5, 1024, generator=torch.Generator().manual_seed(2 * 1_000_003 + 7))
    assert torch.equal(batch.draws, numbers)
    terms = gradients(Learner(random_model, found, Coral()), batch)
    with torch.no_grad():
        vision = vision_of(random_model, batch.prompts)
        own = content(random_model, batch.positives, vision, 1024)
        eos = {
            "reg": last_states(random_model, batch.queries, vision),
            "rec": last_states(random_model, batch.positives + batch.negatives, vision)[:5],
        }
        losses = reconstructions(
            random_model,
            found,
            Coral().weights,
            token_embeddings(random_model, batch.positives, own, vision),
            own,
            own.masks(numbers, 0.5),
            eos,
        )
    random_model.network.zero_grad()
    assert list(terms) == ["contrastive", *Coral().weights, "padding"]
    assert {name: terms[name] for name in losses} == pytest.approx(
        {name: value.item() for name, value in losses.items()}, rel=1e-6
    )


def test_a_query_s_content_is_its_instruction_with_all_its_pictures(random_model, shop):
    queries = [q for q in shop.queries if len(q.conditions) == 3][:3]
    prompts = [prompt(random_model, query) for query in queries]
    vision = vision_of(random_model, prompts)
    found = content(random_model, prompts, vision, LONGEST["query"])
    embeddings = token_embeddings(random_model, prompts, found, vision)
    tokenizer = random_model.processor.tokenizer
    for query, own, ids, words, pictures, row in zip(
        queries, prompts, found.ids, found.words, found.pictures, embeddings, strict=True
    ):
        text = tokenizer.decode(ids[words])
        assert text.startswith(f"Find a product of {query.class_name}")
        assert all(product.title in text for product in query.references)
        assert "assistant" not in text
        features = torch.cat([vision.features[key(picture)] for picture in own.pictures])
        assert torch.equal(row[pictures], features)  # each picture at its own place
    length = found.ids.shape[1]
    with pytest.raises(ItemError, match=rf"query .* tokens and the decoders read {length - 1}; make them"):
        content(random_model, prompts, vision, length - 1)


@pytest.mark.parametrize("coral", [QUERY, BOTH, Coral(vision=0, lambda1=0, reconstruct="both")])
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients_in_parts_are_those_of_the_whole(random_model, batch, coral, chunk):
    own, terms, loss = written_out(random_model, batch, coral)
    loss.backward()
    named = [*random_model.network.named_parameters(), *own.decoders.named_parameters()]
    expected = {name: p.grad.clone() for name, p in named if p.grad is not None}
    random_model.network.zero_grad()
    found, ours = worked_out(random_model, batch, coral, chunk)
    assert found == pytest.approx({name: value.item() for name, value in terms.items()}, rel=1e-5)
    assert_near(ours, expected)


def test_both_is_the_sum_of_its_parts(random_model, batch):
    terms, found = zip(
        *(worked_out(random_model, batch, coral) for coral in (CONTRASTIVE, TARGET, QUERY, BOTH)), strict=True
    )
    assert terms[3] == pytest.approx(terms[1] | terms[2])
    nothing = torch.zeros(())
    summed = {
        name: found[1].get(name, nothing) + found[2].get(name, nothing) - found[0].get(name, nothing)
        for name in found[3]
    }
    assert_near(found[3], summed)


# the control


def test_a_shuffled_batch_has_the_same_items_and_nobody_s_own(batch):
    mixed, other = batch.shuffled(("target", "query")), batch.circle(1)
    assert sorted(other) == list(range(5))
    for item in ("target", "query"):
        own, found = batch.rebuilt(item), mixed.rebuilt(item)
        assert [found[row] for row in range(5)] == [own[row] for row in other]
        assert all(a is not b for a, b in zip(own, found, strict=True))
    assert torch.equal(mixed.draws, batch.draws[other])  # what is hidden of an item is the same
    assert mixed.prompts == batch.prompts
    assert mixed.circle(1) == other  # so that the one before is neither its own nor the lent one
    assert all(mixed.circle(-1)[row] not in (row, other[row]) for row in range(5))
    part = mixed.part(range(2, 4))
    assert part.rebuilt("query") == mixed.rebuilt("query")[2:4]
    assert batch.shuffled(("target",)).rebuilt("query") == batch.queries


@pytest.mark.parametrize("chunk", [None, 2, 1])
def test_lending_an_item_is_taking_another_row_s_vector_in_any_parts(random_model, batch, chunk):
    """Against one graph of the batch as it is, with h_eos moved from row to row."""
    own, terms, loss = written_out(random_model, batch, SHUFFLED, batch.circle(-1))
    loss.backward()
    named = [*random_model.network.named_parameters(), *own.decoders.named_parameters()]
    expected = {name: p.grad.clone() for name, p in named if p.grad is not None}
    random_model.network.zero_grad()
    found, ours = worked_out(random_model, batch, SHUFFLED, chunk)
    assert found == pytest.approx({name: value.item() for name, value in terms.items()}, rel=1e-5)
    assert_near(ours, expected)


@pytest.mark.parametrize("coral", [BOTH, SHUFFLED])
def test_what_another_row_s_vector_does_is_said_beside_and_changes_nothing(random_model, batch, coral):
    plain, gradient = worked_out(random_model, batch, coral)
    found = [worked_out(random_model, batch, coral, chunk, others=True) for chunk in (None, 2, 1)]
    assert all(torch.equal(own, gradient[name]) for name, own in found[0][1].items())
    assert {name: found[0][0][name] for name in plain} == plain
    assert found[0][0].keys() - plain.keys() == {f"{name} other" for name in coral.weights}
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert found[2][0] == pytest.approx(found[0][0], rel=1e-5)
    circle, before = batch.circle(1), batch.circle(-1)
    # unshuffled: item i from the row before it; shuffled: item circle[j] from the row before j
    rows = before if coral is BOTH else [before[before[i]] for i in range(5)]
    assert all(circle[row] == i for i, row in enumerate(before))
    with torch.no_grad():
        _, terms, _ = written_out(random_model, batch, replace(coral, shuffled=False), rows)
    for name in coral.weights:
        assert found[0][0][f"{name} other"] == pytest.approx(terms[name].item(), rel=1e-5)


def test_a_log_has_it_at_every_tenth_step_where_there_is_another_row(random_model, pairs, batch):
    own = learner(random_model, TARGET)
    step = contrastive_objective(own, lambda number: batch)
    said = [number for number in (0, 8, 9, 19, 20) if "reg vision other" in step(number).terms]
    assert said == [9, 19]
    single = make_batch(random_model, pairs[:1], LONGEST["both"])
    assert not any("other" in name for name in gradients(own, single, others=True))
    plain = learner(random_model, CONTRASTIVE)
    assert gradients(plain, batch, others=True).keys() == {"contrastive", "padding"}
    random_model.network.zero_grad()


# decoders that come first

FIRST = TrainConfig(steps=2, warmup=2, decoders_first=3, checkpoint_every=1, weight_decay=0.5)


def learning_of(model, coral, pairs, chunk=None, first=3):
    heads = decoders(model, coral)

    def batches(number):
        own = torch.Generator().manual_seed(number)
        return make_batch(model, pairs, heads.longest, generator=own)

    return heads, contrastive_objective(Learner(model, heads, coral), batches, chunk, decoders_first=first)


@pytest.mark.parametrize("chunk", [None, 2])
def test_while_decoders_learn_alone_the_network_stays_to_the_bit(
    random_folder, pairs, tmp_path, monkeypatch, chunk
):
    model, seen, made = cl.load(random_folder), [], []
    make = loop._optimizer
    monkeypatch.setattr(loop, "_optimizer", lambda *own: made.append(make(*own)) or made[0])
    heads, objective = learning_of(model, replace(BOTH, learn_temperature=True), pairs, chunk)
    network, rows = dict(model.network.named_parameters()), []
    before = {name: p.detach().clone() for name, p in network.items()}
    mask = heads.by_kind["vision"].mask

    def on_step(row):
        rows.append(row)
        stays = all(torch.equal(p, before[name]) for name, p in network.items())
        moments = max(made[0].state[p]["exp_avg_sq"].abs().max().item() for p in network.values())
        steps = max(made[0].state[p]["step"].item() for p in network.values())
        seen.append((stays, moments == 0, steps, heads.temperature.item() == pytest.approx(0.04)))
        seen[-1] += (mask.detach().clone(),)

    train_loop(model, objective, FIRST, tmp_path, lambda: {"R@1": 0.5}, decoders=heads, on_step=on_step)
    assert [row[:4] for row in seen[:3]] == [(True, True, 0, True)] * 3
    assert [row[:3] for row in seen[3:]] == [(False, False, 1), (False, False, 2)]
    assert not any(torch.equal(a[4], b[4]) for a, b in pairwise(seen))
    assert [row["learning_rate"] for row in rows] == pytest.approx([0, 0, 0, 5e-4, 1e-3])
    assert ["R@1" in row for row in rows] == [False] * 4 + [True]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_the_schedule_begins_anew_with_the_network():
    config = TrainConfig(steps=10, warmup=4, decoders_first=6)
    plain = replace(config, decoders_first=0)
    assert config.all_steps == 16
    first = [learning_rate(step, config) for step in range(6)]
    assert first == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    after = [learning_rate(step, config) for step in range(6, 16)]
    assert after == [learning_rate(step, plain) for step in range(10)]


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_that_was_stopped_goes_on_to_the_bit(random_folder, pairs, tmp_path, stop):
    """Before the network began, as it begins, and after."""

    class Killed(Exception):
        pass

    def run(folder, dies=None):
        model = cl.load(random_folder)
        heads, objective = learning_of(model, TARGET, pairs)

        def own(number):
            if number == dies:
                raise Killed
            return objective(number)

        train_loop(model, own, FIRST, folder, decoders=heads)
        return model.network.state_dict() | heads.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "part", stop)
    part = run(tmp_path / "part")
    assert all(torch.equal(part[name], whole[name]) for name in whole)


@pytest.fixture(scope="module")
def small(shop):
    return replace(shop, products=shop.smaller_pool(shop.queries[:12], 60), queries=shop.queries[:12])


def test_the_network_meets_the_same_batches_whether_decoders_came_first_or_not(
    random_folder, small, tmp_path, monkeypatch
):
    met, make = {}, from_data.batch_of

    def noting(learner, pairs, step, seed, number):
        met.setdefault(number, []).append([pair.query.id for pair in pairs])
        return make(learner, pairs, step, seed, number)

    monkeypatch.setattr(from_data, "batch_of", noting)
    step, config = StepConfig(BOTH, batch_size=4, augmented=True), TrainConfig(steps=2, warmup=1)
    for first in (0, 2):
        own = replace(config, decoders_first=first)
        cl.train(cl.load(random_folder), small, tmp_path / str(first), step, own)
    assert sorted(met) == [-2, -1, 0, 1]
    assert met[0] == met[-2] * 2
    assert met[1] == met[-1] * 2
    card = (tmp_path / "2" / "README.md").read_text(encoding="utf-8")
    assert "decoders_first 2" in card
    assert "query language 0.2" in card
    assert "decoders_first" not in (tmp_path / "0" / "README.md").read_text(encoding="utf-8")


# files and options


def test_another_reading_is_refused_and_an_earlier_state_goes_on(random_folder, small, tmp_path, monkeypatch):
    step, config = StepConfig(Coral(), batch_size=4), TrainConfig(steps=1, warmup=1)
    facts = from_data._facts(cl.load(random_folder), small, mini_pairs(small), step)
    assert not {"reconstruct", "shuffled"} & facts.keys()  # as states had it before there was a choice
    model = cl.load(random_folder)
    assert "decoders_first" not in loop._fingerprint(model, config, facts)
    cl.train(model, small, tmp_path, step, config)
    others = {
        "reconstruct": (replace(step, coral=BOTH), config),
        "shuffled": (replace(step, coral=Coral(shuffled=True)), config),
        "decoders_first": (step, replace(config, decoders_first=1)),
    }
    for name, (own, how) in others.items():
        with pytest.raises(ValueError, match=rf"was made with {name} .*, and now it is .*; choose another"):
            cl.train(cl.load(random_folder), small, tmp_path, own, how)


def test_decoders_of_every_reading_are_loaded_and_shown(random_folder, small, tmp_path):
    for coral in (BOTH, SHUFFLED):
        out = tmp_path / str(coral.shuffled)
        model = cl.train(
            cl.load(random_folder), small, out, StepConfig(coral, batch_size=4), TrainConfig(steps=1)
        )
        found = load_decoders(model, str(out))
        assert found.longest == LONGEST["both"] == 4096
        product = next(p for p in small.products if p.image is not None)
        shown = rebuild(model, found, product, small.queries[0], gallery=[product])
        assert 0 <= shown.guessed <= 1
        told = "another row's h_eos" in (out / "README.md").read_text(encoding="utf-8")
        assert told == coral.shuffled


def test_what_makes_no_sense_is_refused_in_one_line(random_model, batch, pairs):
    refused = {
        "reconstruct is 'answer'; use one of 'target', 'query', 'both'": lambda: Coral(reconstruct="answer"),
        "shuffled is set, and nothing is rebuilt": lambda: replace(CONTRASTIVE, shuffled=True),
        "a batch of 2 pairs cannot be shuffled; give at least 3": lambda: make_batch(
            random_model, pairs[:2], 9
        ).shuffled(("target",)),
        "the objective is shuffled and the batch is not": lambda: gradients(
            learner(random_model, SHUFFLED), batch
        ),
        "decoders_first is -1; give 0 or more": lambda: TrainConfig(1, decoders_first=-1),
    }
    for said, action in refused.items():
        with pytest.raises(ValueError, match=said) as error:
            action()
        assert "\n" not in str(error.value)


def test_decoders_cannot_come_first_where_there_are_none(random_folder, small, tmp_path):
    config = TrainConfig(steps=1, decoders_first=2)
    with pytest.raises(ValueError, match="decoders_first is 2, and there are no decoders; leave it out"):
        cl.train(cl.load(random_folder), small, tmp_path, StepConfig(CONTRASTIVE, batch_size=4), config)


def test_options_arrive_and_a_bad_one_is_one_line(monkeypatch, tmp_path, capsys):
    found = {}

    def train_on(model, shop, out, step, config, *, held_out):
        found.update(step=step, config=config)

    monkeypatch.setattr("coral_lab.training.from_data.train", train_on)
    monkeypatch.setattr("coral_lab.models.loading.load_network", lambda *own, **more: None)
    shop = Namespace(skipped=(), queries=(None,))
    monkeypatch.setattr("coral_lab.sources.opening.dataset", lambda *own, **more: shop)
    file, out = tmp_path / "mine.toml", ("--out", str(tmp_path / "out"))
    file.write_text(
        'model = "mini-base"\ndata = "mini"\nsteps = 3\nreconstruct = "query"\ndecoders_first = 5\n'
    )
    assert main(["train", "--config", str(file), "--shuffled", *out]) == 0
    assert asdict(found["step"].coral) == asdict(Coral(reconstruct="query", shuffled=True))
    assert found["config"].decoders_first == 5
    capsys.readouterr()
    assert main(["train", "--config", str(file), "--reconstruct", "answer", *out]) == 2
    said = capsys.readouterr().err
    assert "reconstruct is 'answer'; use one of 'target', 'query', 'both'" in said
    assert said.count("\n") == 1
    assert {"reconstruct", "shuffled"} < {*learning.OWN}
