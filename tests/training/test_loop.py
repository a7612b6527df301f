"""The loop learns, resumes to the bit after a kill, and stops on NaN; the stages feed it what they should."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from coral_lab import encode, load
from coral_lab.mini import recipe
from coral_lab.mini.lessons import (
    SLOTS,
    answer_loss,
    picture_lesson,
    query_lesson,
    slot_accuracy,
    summary_loss,
    title_lesson,
)
from coral_lab.mini.merit_mini import catalogue
from coral_lab.mini.queries import stated
from coral_lab.mini.recipe import DEFAULTS, RECIPE, Mixture, base_objective, disputed, train_all, train_stage
from coral_lab.mini.titles import ATTRIBUTES, named_in_title
from coral_lab.models.forward import normalised
from coral_lab.models.inputs import prompt
from coral_lab.models.loading import best_device
from coral_lab.models.prefixes import last_states
from coral_lab.models.vision import vision_of
from coral_lab.training import loop
from coral_lab.training.config import TrainConfig, learning_rate
from coral_lab.training.loop import Step, _optimizer, backward, train_loop
from coral_lab.training.lora import add_lora
from coral_lab.training.reconstruction import Coral, decoders


def weights(folder):
    return load(folder).network.state_dict()


def quadratic(model):
    """A cheap objective with randomness in it."""
    weight = model.network.lm_head.weight
    return lambda step: Step(backward({"pull": ((weight - torch.randn_like(weight)) ** 2).mean()}))


CONFIG = TrainConfig(steps=6, warmup=2, checkpoint_every=2)


def test_a_run_stopped_and_resumed_ends_with_the_same_weights(random_folder, tmp_path):
    whole = load(random_folder)
    train_loop(whole, quadratic(whole), CONFIG, tmp_path / "whole")

    class Killed(Exception):
        pass

    part = load(random_folder)

    def dies_at_step_5(step):
        if step == 5:
            raise Killed
        return quadratic(part)(step)

    with pytest.raises(Killed):
        train_loop(part, dies_at_step_5, CONFIG, tmp_path / "part")
    fresh = load(random_folder)
    train_loop(fresh, quadratic(fresh), CONFIG, tmp_path / "part")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "part")[name]), name
    rows = [list(csv.DictReader((tmp_path / run / "log.csv").open())) for run in ("whole", "part")]
    assert [row["step"] for row in rows[1]] == ["1", "2", "3", "4", "5", "6"]
    assert [row["pull"] for row in rows[0]] == [row["pull"] for row in rows[1]]


def test_it_evaluates_and_saves_every_so_many_steps_and_at_the_end(
    random_folder, tmp_path, monkeypatch, caplog
):
    model, rows, saved = load(random_folder), [], []
    pull = quadratic(model)

    def objective(step):
        assert model.network.training
        return pull(step)

    def evaluate():
        assert not model.network.training
        return {"R@1": len(rows) / 10}

    save_state = loop._save_state
    monkeypatch.setattr(loop, "_save_state", lambda *own: saved.append(own[3].step) or save_state(*own))
    config = TrainConfig(steps=7, warmup=1, evaluate_every=2, checkpoint_every=3)
    with caplog.at_level("WARNING"):
        train_loop(model, objective, config, tmp_path, evaluate, on_step=rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert {row["step"]: row["R@1"] for row in rows if "R@1" in row} == {2: 0.1, 4: 0.3, 6: 0.5, 7: 0.6}
    assert saved == [3, 6, 7]
    assert "already finished" not in caplog.text
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| last step | step 7, " in card
    assert "evaluate_every" not in card
    with caplog.at_level("WARNING"):
        train_loop(load(random_folder), objective, config, tmp_path, evaluate, on_step=rows.append)
    assert "is already finished, after 7 steps" in caplog.text
    assert len(rows) == 7


def test_every_process_evaluates_and_only_the_first_writes(random_folder, tmp_path, monkeypatch):
    """As the second of two: the first makes the folder that this one's part of a state would go into."""
    model, asked = load(random_folder), []
    monkeypatch.setattr("coral_lab.training.distributed.rank", lambda: 1)
    never = lambda *_: pytest.fail("not the first")  # noqa: E731
    evaluate = lambda: asked.append(1) or {"R@1": 1.0}  # noqa: E731
    train_loop(model, quadratic(model), replace(CONFIG, steps=1), tmp_path, evaluate, on_step=never)
    assert asked == [1]
    assert not list(tmp_path.iterdir())


def test_what_a_step_draws_depends_on_the_seed_and_its_number(random_folder, tmp_path):
    model, seeds = load(random_folder), []
    pull = quadratic(model)

    def objective(number):
        seeds.append((number, torch.initial_seed()))
        return pull(number)

    train_loop(model, objective, TrainConfig(steps=2, seed=3, accumulate=2), tmp_path)
    assert seeds == [(number, 3 * 1_000_003 + number) for number in range(4)]  # of no other seed's steps


def test_matrices_decay_and_nothing_else():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Embedding(4, 2))
    module[2].weight.requires_grad = False
    optimizer = _optimizer({"network": module}, TrainConfig(steps=1, learning_rate=0.3, weight_decay=0.07))
    matrices, others = optimizer.param_groups
    assert [list(p.shape) for p in matrices["params"]] == [[2, 3]]
    assert [list(p.shape) for p in others["params"]] == [[2], [2], [2]]
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.07, 0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.3}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.98)}


def test_decoders_learn_at_a_rate_of_their_own():
    parts = {"network": torch.nn.Linear(2, 2), "decoders": torch.nn.Linear(2, 2)}
    for given, share in ((0, 1), (3e-4, 3)):
        config = TrainConfig(steps=1, learning_rate=1e-4, decoder_learning_rate=given)
        groups = _optimizer(parts, config).param_groups
        shares = {id(p): group["share"] for group in groups for p in group["params"]}
        for name, module in parts.items():
            for parameter in module.parameters():
                assert shares[id(parameter)] == pytest.approx(share if name == "decoders" else 1)
    with pytest.raises(ValueError, match="decoder_learning_rate is -1; give 0 or more"):
        TrainConfig(steps=1, decoder_learning_rate=-1)


def test_unless_told_otherwise_a_run_is_what_the_recipe_was_tuned_for():
    expected = TrainConfig(1, 1e-3, 100, 0.05, (0.9, 0.98), 1.0, 0, 200, 100, 1, "float32")
    assert TrainConfig(steps=1) == expected


def test_a_checkpoint_of_another_config_is_refused(random_folder, tmp_path):
    model = load(random_folder)
    train_loop(model, quadratic(model), CONFIG, tmp_path)
    with pytest.raises(ValueError, match="choose another folder"):
        train_loop(model, quadratic(model), replace(CONFIG, seed=1), tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_its_batch_is_kept(random_folder, shop, tmp_path, bad):
    model = load(random_folder)
    weight, start = model.network.lm_head.weight, weights(random_folder)
    batch = [prompt(model, shop.queries[0])]

    def fails_at_step_1(step):
        return Step(backward({"bad": weight.sum() * (bad if step == 1 else 0.0)}), batch)

    with pytest.raises(
        FloatingPointError, match=r"loss at step 1 is \{'bad': (nan|-?inf)\}.*failed-step.json"
    ):
        train_loop(model, fails_at_step_1, CONFIG, tmp_path)
    written = json.loads((tmp_path / "failed-step.json").read_text(encoding="utf-8"))
    assert written["batch"] == [{"name": batch[0].name, "text": batch[0].text}]
    assert written["step"] == 1
    assert all(torch.isfinite(p).all() for p in model.network.parameters())
    assert start.keys() == model.network.state_dict().keys()


def test_a_gradient_that_is_no_number_stops_the_run(random_folder, tmp_path):
    model = load(random_folder)
    weight = model.network.lm_head.weight
    with pytest.raises(FloatingPointError, match="gradient's norm nan"):
        train_loop(model, lambda step: Step(backward({"root": (weight * 0).sum().sqrt()})), CONFIG, tmp_path)


def test_accumulated_steps_are_one_step_of_their_mean(random_folder, tmp_path):
    """Two halves of a batch, and the batch whole, move the weights alike."""

    def objective(model, at):
        weight = model.network.lm_head.weight
        return lambda step: Step(backward({"pull": (weight - at(step)).square().mean()}))

    config = replace(CONFIG, steps=1)
    whole, halves = load(random_folder), load(random_folder)
    rows, single = [], []
    train_loop(whole, objective(whole, lambda step: 0.5), config, tmp_path / "whole", on_step=single.append)
    train_loop(
        halves,
        objective(halves, float),
        replace(config, accumulate=2),
        tmp_path / "halves",
        on_step=rows.append,
    )
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "halves")[name], atol=1e-6, rtol=1e-5)
    weight = load(random_folder).network.lm_head.weight
    expected = ((weight - 0).square().mean() + (weight - 1).square().mean()) / 2
    assert rows[0]["pull"] == pytest.approx(expected.item(), rel=1e-4)
    # Adam hides a factor of the gradient; its norm does not
    assert rows[0]["gradient_norm"] == pytest.approx(single[0]["gradient_norm"], rel=1e-4)


def test_bfloat16_runs_the_network_but_not_the_weights_in_half_precision(random_folder, shop, tmp_path):
    model = load(random_folder)
    config = replace(CONFIG, steps=1, precision="bfloat16")
    hook, seen = (
        model.network.model.language_model.layers[0].mlp.register_forward_hook(
            lambda module, inputs, output: seen.append(output.dtype)
        ),
        [],
    )
    train_loop(
        model, base_objective(model, shop, config, [Mixture(1.0, pictures=1, titles=2)]), config, tmp_path
    )
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}


def test_decoders_resume_with_the_model(random_folder, tmp_path):
    def fresh():
        model = load(random_folder)
        return model, decoders(model, Coral())

    def objective(model, heads):
        out = heads.by_kind["vision"].out.weight
        return lambda step: Step(backward({"pull": (out - torch.randn_like(out)).square().mean()}))

    class Killed(Exception):
        pass

    def dies(model, heads):
        inner = objective(model, heads)

        def step(number):
            if number == 5:
                raise Killed
            return inner(number)

        return step

    model, heads = fresh()
    train_loop(model, objective(model, heads), CONFIG, tmp_path / "whole", decoders=heads)
    model, heads = fresh()
    with pytest.raises(Killed):
        train_loop(model, dies(model, heads), CONFIG, tmp_path / "part", decoders=heads)
    model, heads = fresh()
    train_loop(model, objective(model, heads), CONFIG, tmp_path / "part", decoders=heads)
    whole, part = (load_file(tmp_path / run / "decoders.safetensors") for run in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_lora_keeps_only_its_own_parameters_in_the_state(random_folder, tmp_path):
    model = load(random_folder)
    add_lora(model, 4)
    config = model.network.peft_config["default"]
    assert (config.r, config.lora_alpha) == (4, 8)
    adapters = [p for p in model.network.parameters() if p.requires_grad]
    train_loop(
        model,
        lambda step: Step(backward({"pull": sum((p - 1).square().sum() for p in adapters)})),
        CONFIG,
        tmp_path,
    )
    state = load_file(next(tmp_path.glob("state-00000006/*.safetensors")))
    assert state
    assert all("lora" in name for name in state)
    assert not (tmp_path / "model.safetensors").exists()
    merged, before = weights(tmp_path), weights(random_folder)
    changed = {name for name in before if not torch.equal(merged[name], before[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 0}, "both must be positive"),
        ({"steps": 5, "learning_rate": -1.0}, "both must be positive"),
        ({"steps": 5, "accumulate": 0}, "use 1 or more"),
        ({"steps": 5, "precision": "float8"}, "float32 or bfloat16"),
        ({}, "steps is 0 and learning_rate .* both must be positive"),
        ({"epochs": -1.0}, r"epochs is -1.0 and learning_rate .* both must be positive"),
        ({"steps": -1, "epochs": 2.0}, "both must be positive"),
        ({"steps": 5, "epochs": 1.5}, "steps is 5 and epochs 1.5; give one of the two"),
        ({"steps": 5, "patience": 0}, "patience is 0; give a number of evaluations from 1 on"),
        ({"steps": 5, "patience": -1}, "patience is -1"),
    ],
)
def test_bad_configs_are_refused(values, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**values)


def test_learning_rate_rises_then_falls_to_a_tenth():
    config = TrainConfig(steps=1000, learning_rate=1.0, warmup=100)
    assert learning_rate(0, config) == pytest.approx(0.01)
    assert learning_rate(100, config) == pytest.approx(1.0)
    assert learning_rate(1000, config) == pytest.approx(0.1)
    assert learning_rate(49, config) == pytest.approx(0.5)
    assert learning_rate(550, config) == pytest.approx(0.1 + 0.9 / 2)  # half of a cosine
    assert learning_rate(325, config) == pytest.approx(0.1 + 0.9 * (1 + 0.5**0.5) / 2)
    assert learning_rate(3, TrainConfig(steps=3, learning_rate=2.0, warmup=2)) == pytest.approx(0.2)
    assert learning_rate(5, TrainConfig(steps=5, learning_rate=2.0, warmup=5)) == pytest.approx(2.0)


def test_adapters_are_of_rank_16_and_drawn_by_the_seed_0_unless_told_otherwise(random_folder):
    drawn = []
    for options in ({}, {"rank": 16, "seed": 0}, {"seed": 1}):
        model = load(random_folder)
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        add_lora(model, **options)
        assert torch.equal(torch.rand(1), expected)  # other random numbers are left alone
        drawn.append({name: p for name, p in model.network.named_parameters() if "lora_A" in name})
    assert {p.shape[0] for p in drawn[0].values()} == {16}
    assert all(torch.equal(p, drawn[1][name]) for name, p in drawn[0].items())
    assert not any(torch.equal(p, drawn[2][name]) for name, p in drawn[0].items())


def test_lessons_say_what_their_source_shows_and_no_more(shop):
    product = shop.products[0]
    facts = {key: value[0].replace(" ", "_") for key, value in product.attributes.items()}
    seen = dict(zip(SLOTS, picture_lesson(product)[1].split(), strict=True))
    assert {key for key in ATTRIBUTES if seen[key] != "-"} == {"color", "pattern", "brand", "shape", "trim"}
    assert all(seen[key] in (facts[key], "-") for key in ATTRIBUTES)
    item, text = title_lesson(product)
    assert item.image is None
    assert text.split()[SLOTS.index("shape")] == "-"
    assert picture_lesson(product)[0].title == ""
    query = shop.queries[0]
    words = query_lesson(query)[1].split()
    assert words[0] == query.class_name
    asked = [word for c in query.conditions for word in (c.attribute, c.value.replace(" ", "_"))]
    assert words[1 : 1 + len(asked)] == asked


def test_answer_loss_is_the_plain_next_token_loss(random_model, shop):
    """Against transformers' own labels, one lesson."""
    lesson = title_lesson(shop.products[0])
    head = prompt(random_model, lesson[0]).text
    tokenizer = random_model.processor.tokenizer
    ids = [tokenizer(text)["input_ids"] for text in (head, lesson[1] + "<|im_end|>")]
    batch = torch.tensor([ids[0] + ids[1]])
    labels = batch.clone()
    labels[:, : len(ids[0])] = -100
    with torch.no_grad():
        expected = random_model.network(input_ids=batch, labels=labels).loss
        torch.testing.assert_close(answer_loss(random_model, [lesson]), expected, atol=1e-5, rtol=1e-5)


def test_a_summary_begins_with_any_value_of_the_query(random_model, shop):
    query = replace(shop.queries[0], text=".")
    words = [query.class_name, *(c.value.replace(" ", "_") for c in query.conditions)]
    tokenizer, items = random_model.processor.tokenizer, [prompt(random_model, query)]
    with torch.no_grad():
        state = last_states(random_model, items, vision_of(random_model, items))
        log_p = random_model.network.lm_head(state)[0].log_softmax(-1)
        each = [-log_p[tokenizer(f" {word}")["input_ids"][0]] for word in words]
        found, _ = summary_loss(random_model, [query_lesson(query)])
    torch.testing.assert_close(found, torch.stack(each).mean(), atol=1e-5, rtol=1e-5)


def test_after_its_first_token_a_summary_is_the_answer(random_model, shop):
    """Against transformers' own labels, lesson by lesson."""
    lessons = [title_lesson(product) for product in shop.products[:3]]
    tokenizer, each = random_model.processor.tokenizer, []
    for item, text in lessons:
        head, tail = tokenizer([prompt(random_model, item).text, text + "<|im_end|>"])["input_ids"]
        labels = torch.tensor([[-100] * (len(head) + 1) + tail[1:]])
        with torch.no_grad():
            loss = random_model.network(input_ids=torch.tensor([head + tail]), labels=labels).loss
        each.append((loss * (len(tail) - 1), len(tail) - 1))
    expected = sum(loss for loss, _ in each) / sum(count for _, count in each)
    with torch.no_grad():
        _, found = summary_loss(random_model, lessons)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_summary_of_a_product_begins_with_what_it_shows(random_model, shop):
    """A picture alone has six values; with every other word impossible, the loss is that of six equal
    ones.
    """
    product = shop.products[0]
    lesson = picture_lesson(product)
    words = [word for word in lesson[1].split() if word != "-"]
    ids = [random_model.processor.tokenizer(f" {word}")["input_ids"][0] for word in words]
    bias = torch.full((random_model.network.lm_head.out_features,), -1e4)
    bias[ids] = 0
    only = random_model.network.lm_head.register_forward_hook(lambda *call: torch.zeros_like(call[2]) + bias)
    try:
        found = summary_loss(random_model, [lesson])[0].item()
    finally:
        only.remove()
    assert len(words) == 6
    assert found == pytest.approx(math.log(len(set(ids))), rel=1e-4)


def test_slot_accuracy_counts_slots_that_are_shown(random_model, shop):
    found = slot_accuracy(random_model, [picture_lesson(product) for product in shop.products[:4]])
    assert set(found) == {"class", "color", "pattern", "brand", "shape", "trim"}
    queries = shop.queries[:4]
    asked = slot_accuracy(random_model, [query_lesson(query) for query in queries])
    wanted = {c.attribute for query in queries for c in query.conditions}
    wanted |= {stated(query)[0] for query in queries if stated(query)}
    assert set(asked) == {"class", *wanted}


def test_training_embeddings_are_those_of_encode(random_model, shop):
    prompts = [prompt(random_model, query) for query in shop.queries[:5]]
    with torch.no_grad():
        ours = normalised(last_states(random_model, prompts, vision_of(random_model, prompts), chunk=2))
    torch.testing.assert_close(
        ours, torch.from_numpy(encode(random_model, shop.queries[:5])), atol=1e-5, rtol=1e-4
    )


def test_a_step_of_the_base_depends_on_its_number_alone(random_model, shop):
    every_kind = Mixture(1.0, pictures=4, titles=2, products=2, queries=4, moved=True, disputed=0.5)
    objective = base_objective(random_model, shop, TrainConfig(steps=10), [every_kind])
    found = []
    for _ in range(2):
        torch.manual_seed(9)  # as the loop does before each step
        found.append(objective(9).terms)
    random_model.network.zero_grad()
    assert found[0] == found[1]


def test_lessons_that_cannot_be_shared_are_refused(random_model, shop, monkeypatch):
    objective = base_objective(random_model, shop, TrainConfig(steps=10), [Mixture(1.0, pictures=3)])
    monkeypatch.setattr("coral_lab.training.distributed.world_size", lambda: 2)
    with pytest.raises(ValueError, match="a batch of 3 for 2 processes"):
        objective(0)


def test_a_disputed_query_has_another_size_in_another_title(shop):
    found = [query for query in shop.queries if disputed(query)]
    assert 0 < len(found) < len(shop.queries)
    for query in found:
        wanted = next(c for c in query.conditions if c.attribute == "size")
        others = [c.product for c in query.conditions if c is not wanted]
        assert any("size" in named_in_title(p) and p.attributes["size"][0] != wanted.value for p in others)


def test_an_unknown_stage_and_a_missing_start_are_named(tmp_path):
    with pytest.raises(
        ValueError,
        match="choose one of base, answers, contrastive, coral",
    ):
        train_stage("coral-plus", None, tmp_path)
    with pytest.raises(ValueError, match="starts from a model"):
        train_stage("contrastive", None, tmp_path)


def test_every_leg_starts_from_what_was_made_before_and_pictures_are_kept(
    random_folder, tmp_path, monkeypatch
):
    ran, kept = [], []

    def learns_nothing(stage, model, out, config, device):
        assert device == "cpu"
        ran.append((stage, model and Path(model.name).name, out.name, config))
        shutil.copytree(random_folder, out)
        model = model or load(random_folder)
        kept.append(model.pixels)
        return model

    monkeypatch.setattr(recipe, "train_stage", learns_nothing)
    train_all(tmp_path, {"warmup": 7}, "cpu")
    assert [own[:3] for own in ran] == [(leg.stage, leg.start, leg.out) for leg in RECIPE]
    assert {stage for stage, *_ in ran} == {*DEFAULTS}
    assert all(pixels is kept[0] for pixels in kept)
    for leg, (*_, config) in zip(RECIPE, ran, strict=True):
        assert config == replace(DEFAULTS[leg.stage], warmup=7)


def test_a_base_from_scratch_is_trained_on_the_device_asked_for(random_folder, tmp_path, monkeypatch):
    small = catalogue("mini", "val")
    monkeypatch.setattr(recipe, "catalogue", lambda *_, **__: small)
    monkeypatch.setattr(recipe, "untrained", lambda *_: load(random_folder))
    monkeypatch.setattr(recipe, "train_loop", lambda model, *_, **__: model)
    assert train_stage("base", None, tmp_path, device="meta").device.type == "meta"
    assert train_stage("base", None, tmp_path).device.type == best_device()


@pytest.mark.slow
def test_all_of_coral_mini_is_made_and_a_second_run_leaves_it_as_it_is(tmp_path):
    train_all(tmp_path, {"steps": 1})
    made = {leg.out: weights(tmp_path / leg.out) for leg in RECIPE}
    train_all(tmp_path, {"steps": 1})
    for name, before in made.items():
        torch.testing.assert_close(weights(tmp_path / name), before, rtol=0, atol=0)
        assert len((tmp_path / name / "log.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_kill_9_in_the_middle_of_base_training_changes_nothing(tmp_path):
    """Ten real steps, killed once after the first checkpoint; the code that `make mini` runs."""
    script = (
        "import sys; from coral_lab.mini.recipe import train_stage; "
        "from coral_lab.training.config import TrainConfig; "
        "train_stage('base', None, sys.argv[1], TrainConfig(steps=10, warmup=2, checkpoint_every=2, "
        "evaluate_every=100))"
    )
    command = [sys.executable, "-c", script]
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    process = subprocess.Popen([*command, tmp_path / "part"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "part").glob("state-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*command, tmp_path / "part"], check=True, capture_output=True)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "part")[name]), name


@pytest.mark.parametrize(
    "name", ["log.csv", "state-00000002", "failed-step.json", "model.safetensors", "anything"]
)
def test_a_training_folder_with_a_link_in_it_is_refused_before_a_step(random_model, tmp_path, name):
    (tmp_path / "precious").write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(tmp_path / "precious")
    never = lambda _: pytest.fail("a step was taken")  # noqa: E731
    with pytest.raises(ValueError, match=f"{name} is a link, which is not followed; remove it"):
        train_loop(random_model, never, CONFIG, out)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="link is a link; name the folder that it leads to"):
        train_loop(random_model, never, CONFIG, tmp_path / "link")
    assert (tmp_path / "precious").read_text() == "precious"
