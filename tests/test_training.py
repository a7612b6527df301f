"""The loop learns, resumes to the bit after a kill, and stops on NaN; the stages feed it what they should."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from coral_lab import encode, load
from coral_lab.catalogue import ATTRIBUTES
from coral_lab.inputs import prompt
from coral_lab.lessons import SLOTS, answer_loss, picture_lesson, query_lesson, slot_accuracy, title_lesson
from coral_lab.stages import base_objective, contrastive_objective, embed_all, run
from coral_lab.training import TrainConfig, learning_rate, train


def weights(folder):
    return load(folder).network.state_dict()


def quadratic(model):
    """A cheap objective with randomness in it."""
    weight = model.network.lm_head.weight
    return lambda step: {"pull": ((weight - torch.randn_like(weight)) ** 2).mean()}


CONFIG = TrainConfig(steps=6, warmup=2, checkpoint_every=2)


def test_a_run_stopped_and_resumed_ends_with_the_same_weights(random_folder, tmp_path):
    whole = load(random_folder)
    train(whole, quadratic(whole), CONFIG, tmp_path / "whole")

    class Killed(Exception):
        pass

    part = load(random_folder)

    def dies_at_step_5(step):
        if step == 5:
            raise Killed
        return quadratic(part)(step)

    with pytest.raises(Killed):
        train(part, dies_at_step_5, CONFIG, tmp_path / "part")
    fresh = load(random_folder)
    train(fresh, quadratic(fresh), CONFIG, tmp_path / "part")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "part")[name]), name
    rows = [list(csv.DictReader((tmp_path / run / "log.csv").open())) for run in ("whole", "part")]
    assert [row["step"] for row in rows[1]] == ["1", "2", "3", "4", "5", "6"]
    assert [row["pull"] for row in rows[0]] == [row["pull"] for row in rows[1]]


def test_a_checkpoint_of_another_config_is_refused(random_folder, tmp_path):
    model = load(random_folder)
    train(model, quadratic(model), CONFIG, tmp_path)
    with pytest.raises(ValueError, match="choose another folder"):
        train(model, quadratic(model), replace(CONFIG, seed=1), tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(random_folder, tmp_path):
    model = load(random_folder)
    weight = model.network.lm_head.weight
    with pytest.raises(FloatingPointError, match=r"loss at step 0 is \{'bad': nan\}"):
        train(model, lambda step: {"bad": weight.sum() * float("nan")}, CONFIG, tmp_path)


@pytest.mark.parametrize("values", [{"steps": 0}, {"steps": 5, "learning_rate": -1.0}])
def test_bad_configs_are_refused(values):
    with pytest.raises(ValueError, match="both must be positive"):
        TrainConfig(**values)


def test_learning_rate_rises_then_falls_to_a_tenth():
    config = TrainConfig(steps=1000, learning_rate=1.0, warmup=100)
    assert learning_rate(0, config) == pytest.approx(0.01)
    assert learning_rate(100, config) == pytest.approx(1.0)
    assert learning_rate(1000, config) == pytest.approx(0.1)


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
    assert words[1 : 1 + len(query.conditions)] == [c.value.replace(" ", "_") for c in query.conditions]


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


def test_slot_accuracy_counts_slots_that_are_shown(random_model, shop):
    found = slot_accuracy(random_model, [picture_lesson(product) for product in shop.products[:4]])
    assert set(found) == {"class", "color", "pattern", "brand", "shape", "trim"}


def test_training_embeddings_are_those_of_encode(random_model, shop):
    prompts = [prompt(random_model, query) for query in shop.queries[:5]]
    with torch.no_grad():
        ours = embed_all(random_model, [prompts], chunk=2)[0]
    torch.testing.assert_close(
        ours, torch.from_numpy(encode(random_model, shop.queries[:5])), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("stage", ["base", "contrastive"])
def test_a_step_depends_on_its_number_alone(random_model, shop, stage):
    config = TrainConfig(steps=10)
    kinds = {
        "base": lambda: base_objective(random_model, shop, config),
        "contrastive": lambda: contrastive_objective(random_model, shop, config, batch_size=8),
    }
    with torch.no_grad():
        torch.manual_seed(9)  # as the loop does before each step
        first = kinds[stage]()(9)
        torch.manual_seed(9)
        again = kinds[stage]()(9)
    assert first.keys() == again.keys()
    for name, value in first.items():
        assert torch.equal(value, again[name])


def test_an_unknown_stage_and_a_missing_start_are_named(tmp_path):
    with pytest.raises(ValueError, match="choose one of base, review, contrastive"):
        run("coral-plus", None, tmp_path)
    with pytest.raises(ValueError, match="starts from a model"):
        run("contrastive", None, tmp_path)


@pytest.mark.slow
def test_kill_9_in_the_middle_of_base_training_changes_nothing(tmp_path):
    """Ten real steps, killed once after the first checkpoint; the code that `make mini` runs."""
    script = (
        "import sys; from coral_lab.stages import run; from coral_lab.training import TrainConfig; "
        "run('base', None, sys.argv[1], TrainConfig(steps=10, warmup=2, checkpoint_every=2, evaluate_every=100))"
    )
    command = [sys.executable, "-c", script]
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    process = subprocess.Popen([*command, tmp_path / "part"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "part" / "state.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*command, tmp_path / "part"], check=True, capture_output=True)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "part")[name]), name
