"""Training on a dataset: it learns, and another run's folder is refused by the first thing that differs."""

import logging
from dataclasses import replace

import pytest
import torch

import coral_lab as cl
from coral_lab.training import Coral, StepConfig, TrainConfig, from_data
from coral_lab.training.reconstruction import CONTRASTIVE

STEP = StepConfig(CONTRASTIVE, batch_size=4)
CONFIG = TrainConfig(steps=2, warmup=1)


@pytest.fixture(scope="module")
def small(shop):
    return replace(shop, products=shop.smaller_pool(shop.queries[:12], 60), queries=shop.queries[:12])


def test_a_model_learns_and_its_folder_is_a_checkpoint(random_folder, small, tmp_path):
    before = cl.load(random_folder).network.state_dict()
    cl.train(cl.load(random_folder), small, tmp_path, objective=StepConfig(batch_size=4), config=CONFIG)
    after = cl.load(tmp_path).network.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "decoders.safetensors").is_file()
    assert "| training | steps 2, " in (tmp_path / "README.md").read_text(encoding="utf-8")


OTHERS = {
    "temperature": {"objective": replace(STEP, coral=replace(CONTRASTIVE, temperature=0.1))},
    "lambda1": {"objective": replace(STEP, coral=Coral(lambda1=0.4, lambda2=0))},
    "batch_size": {"objective": replace(STEP, batch_size=5)},
    "negatives": {"objective": replace(STEP, negatives=1)},
    "format": {"objective": replace(STEP, format="caption")},
    "batches": {"objective": replace(STEP, batches="mixed")},
    "augmented": {"objective": replace(STEP, augmented=True)},
    "patience": {"config": replace(CONFIG, patience=3), "held_out": 2},
    "steps": {"config": replace(CONFIG, steps=3)},
    "learning_rate": {"config": replace(CONFIG, learning_rate=1e-2)},
    "seed": {"config": replace(CONFIG, seed=1)},
}


@pytest.fixture(scope="module")
def finished(random_folder, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    cl.train(cl.load(random_folder), small, folder, objective=STEP, config=CONFIG)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_another_setting_is_refused_by_name(random_folder, small, finished, name):
    given = {"objective": STEP, "config": CONFIG} | OTHERS[name]
    with pytest.raises(
        ValueError, match=rf"was made with {name} .*, and now it is .*; choose another folder"
    ) as error:
        cl.train(cl.load(random_folder), small, finished, **given)
    assert len(str(error.value)) < 400


def test_other_data_and_another_start_are_refused_too(random_folder, small, finished):
    for other in (
        replace(small, queries=small.queries[:11]),
        replace(small, queries=(replace(small.queries[0], text=" in red."), *small.queries[1:])),
    ):
        with pytest.raises(ValueError, match="was made with data mini/test"):
            cl.train(cl.load(random_folder), other, finished, STEP, CONFIG)
    model = cl.load(random_folder)
    model.network.lm_head.weight.data += 1
    with pytest.raises(ValueError, match="was made with start"):
        cl.train(model, small, finished, STEP, CONFIG)


def test_a_finished_run_says_so_and_stays(random_folder, small, finished, caplog):
    before = cl.load(finished).network.state_dict()
    with caplog.at_level(logging.WARNING):
        cl.train(cl.load(random_folder), small, finished, objective=replace(STEP, chunk=2), config=CONFIG)
    assert "is already finished, after 2 steps" in caplog.text
    after = cl.load(finished).network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_unknown_objective_is_named(random_model, small, tmp_path):
    with pytest.raises(ValueError, match="objective is 'corral'; use coral or contrastive, or a StepConfig"):
        cl.train(random_model, small, tmp_path, objective="corral")


@pytest.mark.parametrize(
    ("coral", "kept"),
    [(CONTRASTIVE, False), (replace(CONTRASTIVE, learn_temperature=True), True), (Coral(lambda1=0), True)],
)
def test_pairs_last_for_every_step_and_what_learns_is_kept(
    random_model, small, tmp_path, monkeypatch, coral, kept
):
    """Four steps of three parts are twelve batches: pairs grow closer over all of them."""
    asked, sampler = [], from_data.pair_sampler
    monkeypatch.setattr(from_data, "pair_sampler", lambda *own: asked.append(own[2:]) or sampler(*own))
    monkeypatch.setattr(
        from_data, "train_loop", lambda model, *_, decoders, **__: asked.append(decoders) or model
    )
    config = TrainConfig(steps=4, accumulate=3, seed=8)
    cl.train(random_model, small, tmp_path, StepConfig(coral, batch_size=5), config)
    assert asked[0] == (5, 12, 8, "closer")
    assert (asked[1] is not None) == kept


def test_unless_told_otherwise_it_is_the_papers_objective_for_1000_steps(
    random_model, small, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(from_data, "train_pairs", lambda *own, **_: asked.append(own[4:]) or random_model)
    cl.train(random_model, small, tmp_path)
    cl.train(random_model, small, tmp_path, "contrastive")
    config = TrainConfig(steps=1000, learning_rate=1e-5)
    assert asked == [(StepConfig(Coral()), config), (StepConfig(CONTRASTIVE), config)]
