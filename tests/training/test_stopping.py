"""How long a training lasts: so many steps or epochs, until it gets no better, or until it is told to end."""

import csv
import logging
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from coral_lab import load
from coral_lab.training import loop, states
from coral_lab.training.config import TrainConfig
from coral_lab.training.loop import Step, backward, train_loop
from coral_lab.training.lora import add_lora

CONFIG = TrainConfig(steps=6, warmup=2, checkpoint_every=2)


@pytest.fixture
def fresh(random_folder):
    """A model of which little learns, so that a step is quick: one after the other, all the same."""

    def make():
        model = load(random_folder)
        model.network.requires_grad_(False)
        model.network.lm_head.weight.requires_grad_(True)
        return model

    return make


def pulling(model):
    """An objective with randomness in it."""
    weight = model.network.lm_head.weight
    return lambda step: Step(backward({"pull": ((weight - torch.randn_like(weight)) ** 2).mean()}))


def head(folder):
    return load(folder).network.lm_head.weight


def table(folder):
    return list(csv.DictReader((folder / "log.csv").open(newline="")))


class Killed(Exception):
    pass


def killed_at(step, objective):
    def one(number):
        if number == step:
            raise Killed
        return objective(number)

    return one


# patience


SCORES = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.5, 5: 0.5, 6: 0.4, 7: 0.9, 8: 1.0}


def judged(model, seen):
    """Says a score by how often it was asked; `seen` keeps the weights of then."""

    def evaluate():
        seen.append(model.network.lm_head.weight.detach().clone())
        return {"MRR@10": SCORES[len(seen)], "R@1": 0.0}

    return evaluate


@pytest.mark.parametrize("checkpoint_every", [1, 2, 3, 100])
def test_training_ends_when_it_gets_no_better_and_the_best_weights_are_saved(
    fresh, tmp_path, caplog, checkpoint_every
):
    """The fourth evaluation is the best but for what would come after two that were no better."""
    config = TrainConfig(steps=16, warmup=1, evaluate_every=2, checkpoint_every=checkpoint_every, patience=2)
    model, seen = fresh(), []
    train_loop(model, pulling(model), config, tmp_path, judged(model, seen))
    assert len(seen) == 6
    assert [row["step"] for row in table(tmp_path)] == [str(step) for step in range(1, 13)]
    assert torch.equal(head(tmp_path), seen[3])
    assert torch.equal(model.network.lm_head.weight, seen[3])
    assert not torch.equal(seen[3], seen[4])
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| best step | step 8, " in card
    assert "MRR@10 0.5" in card
    assert "last step" not in card
    assert [folder.name for folder in tmp_path.glob("*-0*")] == ["best-00000008", "state-00000012"] or [
        folder.name for folder in tmp_path.glob("*-0*")
    ] == ["state-00000012", "best-00000008"]
    never = lambda *_: pytest.fail("a step was taken")  # noqa: E731
    with caplog.at_level(logging.WARNING):
        train_loop(fresh(), never, config, tmp_path, never)
    assert "is already finished, after 12 steps" in caplog.text
    assert torch.equal(head(tmp_path), seen[3])


@pytest.mark.parametrize("at", [1, 7, 8, 9, 10, 11])
@pytest.mark.parametrize("checkpoint_every", [2, 3])
def test_a_run_that_was_killed_ends_as_early_and_with_the_same_weights(fresh, tmp_path, at, checkpoint_every):
    config = TrainConfig(steps=16, warmup=1, evaluate_every=2, checkpoint_every=checkpoint_every, patience=2)
    model, seen = fresh(), []
    train_loop(model, pulling(model), config, tmp_path / "whole", judged(model, seen))

    def known(model):  # by the weights, as real evaluations judge
        def evaluate():
            weight = model.network.lm_head.weight
            place = next(i for i, then in enumerate(seen) if torch.equal(then, weight))
            return {"MRR@10": SCORES[place + 1]}

        return evaluate

    part = fresh()
    with pytest.raises(Killed):
        train_loop(part, killed_at(at, pulling(part)), config, tmp_path / "part", known(part))
    again = fresh()
    train_loop(again, pulling(again), config, tmp_path / "part", known(again))
    assert torch.equal(head(tmp_path / "part"), head(tmp_path / "whole"))
    rows = [
        [(row["step"], row["pull"], row["MRR@10"]) for row in table(tmp_path / run)]
        for run in ("whole", "part")
    ]
    assert rows[0] == rows[1]


def test_of_a_run_that_gets_better_to_the_end_the_last_weights_are_saved(fresh, tmp_path):
    model, seen = fresh(), []
    scores = iter([0.1, 0.2, 0.3])
    measured = judged(model, seen)
    config = replace(CONFIG, evaluate_every=2, patience=1)
    train_loop(model, pulling(model), config, tmp_path, lambda: measured() | {"MRR@10": next(scores)})
    assert len(seen) == 3
    assert torch.equal(head(tmp_path), seen[2])


def test_without_patience_the_last_weights_are_saved_however_bad(fresh, tmp_path):
    model, seen = fresh(), []
    scores = iter([0.9, 0.2, 0.1])
    measured = judged(model, seen)
    config = replace(CONFIG, evaluate_every=2)
    train_loop(model, pulling(model), config, tmp_path, lambda: measured() | {"MRR@10": next(scores)})
    assert torch.equal(head(tmp_path), seen[2])
    assert not list(tmp_path.glob("best-*"))


def test_patience_without_anything_to_follow_is_refused(fresh, tmp_path):
    config = replace(CONFIG, patience=1, evaluate_every=1)
    model = fresh()
    with pytest.raises(ValueError, match="patience is 1, and nothing is evaluated; hold queries out"):
        train_loop(model, pulling(model), config, tmp_path / "a")
    with pytest.raises(ValueError, match="patience follows MRR@10, and what evaluates does not say it"):
        train_loop(model, pulling(model), config, tmp_path / "b", lambda: {"R@1": 1.0})


# steps and epochs


@pytest.mark.parametrize(
    ("epochs", "queries", "batch", "accumulate", "steps"),
    [(1.0, 10, 5, 1, 2), (1.0, 11, 5, 1, 3), (2, 10, 5, 2, 2), (0.5, 10, 5, 1, 1), (0.01, 10, 5, 1, 1)],
)
def test_epochs_are_as_many_steps_as_show_every_query_so_often(epochs, queries, batch, accumulate, steps):
    config = TrainConfig(epochs=epochs, accumulate=accumulate, seed=4).lasting(queries, batch)
    assert config == TrainConfig(steps=steps, accumulate=accumulate, seed=4)
    assert config.lasting(1000, 1) is config


def test_the_loop_counts_steps(fresh, tmp_path):
    with pytest.raises(ValueError, match=r"the config has epochs; see TrainConfig\.lasting"):
        train_loop(fresh(), lambda _: None, TrainConfig(epochs=1.0), tmp_path)


# what learns


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_learning_in_half_precision_is_refused_by_the_name_of_what_would(fresh, tmp_path, dtype):
    model = fresh()
    model.network.lm_head.to(getattr(torch, dtype))
    with pytest.raises(ValueError, match=rf"^network\.\S+embed_tokens\.weight would learn in {dtype}, where"):
        train_loop(model, pulling(model), CONFIG, tmp_path / "out")
    model.network.lm_head.to(torch.float64)
    train_loop(model, pulling(model), replace(CONFIG, steps=1), tmp_path / "out")


def test_what_does_not_learn_may_be_in_half_precision(random_folder, tmp_path):
    model = load(random_folder, dtype="bfloat16")
    with pytest.raises(ValueError, match="would learn in bfloat16"):
        train_loop(model, lambda _: None, CONFIG, tmp_path / "out")
    add_lora(model, 2)
    adapters = [p for p in model.network.parameters() if p.requires_grad]
    pull = lambda _: Step(backward({"pull": sum((p - 1).square().sum() for p in adapters)}))  # noqa: E731
    train_loop(model, pull, replace(CONFIG, steps=1), tmp_path / "out")


def test_a_model_of_which_nothing_learns_is_refused(fresh, tmp_path):
    model = fresh()
    model.network.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing learns: all parameters are frozen"):
        train_loop(model, lambda _: None, CONFIG, tmp_path)


# SIGTERM


def told_at(step, objective):
    def one(number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(number)

    return one


@pytest.mark.parametrize("at", [0, 2, 3])
def test_told_to_end_it_saves_and_goes_on_to_the_same_weights(fresh, tmp_path, caplog, at):
    """Every two steps a state is due; it is written wherever the signal comes."""
    whole, part, again = fresh(), fresh(), fresh()
    train_loop(whole, pulling(whole), CONFIG, tmp_path / "whole")
    rows = []
    before = signal.getsignal(signal.SIGTERM)
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit) as caught:
        train_loop(part, told_at(at, pulling(part)), CONFIG, tmp_path / "part", on_step=rows.append)
    assert caught.value.code == 143
    assert f"was told to end after step {at + 1}; the same again goes on" in caplog.text
    assert [row["step"] for row in rows] == list(range(1, at + 2))
    assert [folder.name for folder in (tmp_path / "part").glob("state-*")] == [f"state-0000000{at + 1}"]
    assert signal.getsignal(signal.SIGTERM) is before
    taken = []
    objective = pulling(again)
    train_loop(again, lambda n: taken.append(n) or objective(n), CONFIG, tmp_path / "part")
    assert taken == list(range(at + 1, 6))
    saved = [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "part")]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())
    assert [row["pull"] for row in table(tmp_path / "whole")] == [
        row["pull"] for row in table(tmp_path / "part")
    ]


def test_told_to_end_in_the_last_step_it_ends_as_it_would(fresh, tmp_path):
    model = fresh()
    train_loop(model, told_at(5, pulling(model)), CONFIG, tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_told_to_end_with_patience_it_goes_on_to_the_same_end(fresh, tmp_path):
    config = TrainConfig(steps=16, warmup=1, evaluate_every=2, checkpoint_every=100, patience=2)
    whole, part, again, seen = fresh(), fresh(), fresh(), []
    train_loop(whole, pulling(whole), config, tmp_path / "whole", judged(whole, seen))
    asked = []
    with pytest.raises(SystemExit):
        train_loop(part, told_at(8, pulling(part)), config, tmp_path / "part", judged(part, asked))
    train_loop(again, pulling(again), config, tmp_path / "part", judged(again, asked))
    assert len(asked) == 6
    assert torch.equal(head(tmp_path / "part"), seen[3])


@pytest.mark.parametrize("raised", [None, KeyError])
def test_whoever_listened_to_sigterm_before_does_so_after(fresh, tmp_path, raised):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        model = fresh()
        objective = pulling(model)

        def step(number):
            assert not heard
            if raised:
                raise raised
            return objective(number)

        if raised:
            with pytest.raises(raised):
                train_loop(model, step, CONFIG, tmp_path)
        else:
            train_loop(model, step, CONFIG, tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_a_run_listens_to_no_signals(fresh, tmp_path):
    """Only a main thread may: a notebook's widget trains in another."""
    model, errors = fresh(), []
    before = signal.getsignal(signal.SIGTERM)

    def run():
        try:
            train_loop(model, pulling(model), replace(CONFIG, steps=1), tmp_path)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "model.safetensors").is_file()


# a full disk


def test_on_a_full_disk_a_run_ends_and_goes_on_from_the_last_state_to_the_same_weights(
    fresh, tmp_path, monkeypatch
):
    whole, part, again = fresh(), fresh(), fresh()
    train_loop(whole, pulling(whole), CONFIG, tmp_path / "whole")
    save = states._save

    def fills(folder, tensors):
        if "4" in folder.name:
            raise OSError(28, "No space left on device")
        save(folder, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(states, "_save", fills)
        with pytest.raises(OSError, match=r"No space left on device.*state-00000002 stays"):
            train_loop(part, pulling(part), CONFIG, tmp_path / "part")
    taken, objective = [], pulling(again)
    train_loop(again, lambda n: taken.append(n) or objective(n), CONFIG, tmp_path / "part")
    assert taken == [2, 3, 4, 5]
    assert torch.equal(head(tmp_path / "part"), head(tmp_path / "whole"))


def test_a_state_is_gone_on_from_with_another_interval_and_no_other_setting(fresh, tmp_path):
    model = fresh()
    train_loop(model, pulling(model), replace(CONFIG, steps=1), tmp_path)
    for changes in ({"checkpoint_every": 7}, {"evaluate_every": 7}):
        train_loop(fresh(), lambda _: None, replace(CONFIG, steps=1, **changes), tmp_path)
    for changes in ({"accumulate": 2}, {"clip": 2.0}, {"betas": (0.9, 0.9)}, {"warmup": 3}):
        (name,) = changes
        with pytest.raises(ValueError, match=f"was made with {name} "):
            train_loop(fresh(), lambda _: None, replace(CONFIG, steps=1, **changes), tmp_path)
    patient = replace(CONFIG, steps=1, patience=1)
    with pytest.raises(ValueError, match="was made with patience None, and now it is 1, asked every 200 "):
        train_loop(fresh(), lambda _: None, patient, tmp_path, dict)
    assert loop.UNASKED == ("evaluate_every", "checkpoint_every", "shard", "tracker")
