"""The configurations that ship: each is options of `coral-lab train`, and says what it takes of memory."""

import re
import tomllib
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

from coral_lab.cli import learning, main
from coral_lab.models import loading, model
from coral_lab.sources import opening
from coral_lab.sources.package_files import shipped
from coral_lab.training import from_data, lora
from coral_lab.training.config import StepConfig, TrainConfig

FILES = sorted(shipped("data/training").glob("*.toml"))
NAMES = [file.stem for file in FILES]
TABLE = Path(__file__).parents[2] / "benchmarks" / "train_costs.csv"
PROCESSES = {name: 8 if "8x" in name else 1 for name in NAMES}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Runs `coral-lab train` as far as loading and training, and gives what these were asked for."""
    found = {}
    shop = Namespace(skipped=(), queries=("a query",))
    monkeypatch.setattr(opening, "dataset", lambda *given, **more: found.update(data=given) or shop)
    monkeypatch.setattr(loading, "load_network", lambda name, **more: found.update(more, model=name) or name)
    monkeypatch.setattr(model, "with_most_pixels", lambda _, pixels: found.update(pixels=pixels))
    monkeypatch.setattr(lora, "add_lora", lambda _, rank, *more: found.update(rank=rank))
    monkeypatch.setattr(
        from_data,
        "train",
        lambda model, shop, out, step, config, *, held_out: found.update(
            step=step, config=config, held=held_out
        ),
    )

    def run(*arguments: str) -> dict:
        found.clear()
        assert main(["train", "--out", str(tmp_path / "out"), *arguments]) == 0
        return found

    return run


def read(name: str) -> tuple[dict, str]:
    text = shipped(f"data/training/{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text), text


def test_there_are_three():
    assert NAMES == ["full-8x80gb", "lora-24gb", "lora-80gb-1024"]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_arrives_where_it_belongs(name, asked):
    own, _ = read(name)
    found = asked("--config", name)
    step, config = found["step"], found["config"]
    assert (type(step), type(config)) == (StepConfig, TrainConfig)
    arrived = {"objective": "coral" if step.coral.weights else "contrastive", "data": found["data"][0]}
    arrived |= {part.name: getattr(found["step"].coral, part.name) for part in fields(step.coral)}
    arrived |= {part.name: getattr(step, part.name) for part in fields(step)}
    arrived |= {part.name: getattr(config, part.name) for part in fields(config)}
    arrived |= {"held_out": found["held"], "lora": found.get("rank"), "pixels": found["pixels"]}
    arrived |= {"model": found["model"], "dtype": found["dtype"]}
    assert {key: arrived[key] for key in own} == own
    assert found["data"] == ("WeiChow/merit", "train")


@pytest.mark.parametrize("name", NAMES)
def test_batches_can_be_shared_and_what_learns_is_in_float32(name):
    own, _ = read(name)
    processes = PROCESSES[name]
    assert own["batch_size"] % processes == 0
    assert own["batch_size"] // processes % own["chunk"] == 0
    assert own["lora" if processes == 1 else "shard"]
    assert own["dtype"] == ("bfloat16" if "lora" in own else "float32")
    assert TrainConfig(steps=1, learning_rate=own["learning_rate"], precision=own["precision"])
    assert own["evaluate_every"] % own["checkpoint_every"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_in_its_comments_is_what_the_benchmark_counts(name):
    counted = pd.read_csv(TABLE).set_index("what")["median"]
    _, text = read(name)
    said = re.findall(r"^# +([\d.]+) GB  ([^:\n]+)", text, re.MULTILINE)
    parts = [what.split(": GB, ")[1] for what in counted.index if what.startswith(f"{name}: GB, ")]
    assert [what for _, what in said] == [*parts, "in all"]
    for number, what in said:
        row = f"{name}: GB {what}" if what == "in all" else f"{name}: GB, {what}"
        assert float(number) == pytest.approx(counted[row], abs=0.051), what
    steps = re.search(r"([\d,]+) steps at most", text)
    assert float(steps[1].replace(",", "")) == counted[f"{name}: steps, at most"]


def test_options_that_are_given_win(asked):
    given = ["--batch-size", "64", "--objective", "contrastive", "--temperature", "0.05", "--lora", "8"]
    found = asked("--config", "lora-24gb", *given)
    assert (found["step"].batch_size, found["step"].coral.temperature, found["rank"]) == (64, 0.05, 8)
    assert found["step"].coral.weights == {}
    found = asked("--config", "full-8x80gb", "--steps", "3", "--no-shard")
    assert (found["config"].steps, found["config"].epochs, found["config"].shard) == (3, 0, False)


def test_a_file_of_ones_own(asked, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('model = "mini-base"\ndata = "mini"\nsteps = 3\nlambda1 = 1\nlora_targets = ["q_proj"]\n')
    found = asked("--config", str(file))
    assert (found["config"].steps, found["step"].coral.lambda1) == (3, 1.0)
    assert (found["model"], found["data"]) == ("mini-base", ("mini", "train"))


REFUSED = {
    "lerning_rate = 1e-5": "lerning_rate is no option; they are accumulate, attention, ",
    "[model]\nname = 'mini'": "model is {'name': 'mini'}, wanted str",
    "steps = 2.5": "steps is 2.5, wanted int",
    "steps = '100'": "steps is '100', wanted int",
    "steps = true": "steps is True, wanted int",
    "shard = 1": "shard is 1, wanted bool",
    "learning_rate = 'low'": "learning_rate is 'low', wanted float",
    "lora_targets = 'q_proj'": "lora_targets is 'q_proj', wanted list",
    "out = 'elsewhere'": "out is no option; they are ",
    "config = 'lora-24gb'": "config is no option; they are ",
    "steps = ": "is no TOML: ",
    "steps = 1\nsteps = 2": "is no TOML: ",
}


@pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=list(REFUSED))
def test_what_is_no_option_or_no_value_of_it_is_refused_by_file(text, said, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{file}" in error
    assert said in error
    assert error.count("\n") == 1


def test_a_file_that_is_no_text_is_refused(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_bytes(b"steps = 1 # \xff")
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "out")]) == 2
    assert f"{file} is no TOML" in capsys.readouterr().err


def test_a_name_that_there_is_not_is_refused_by_those_there_are(tmp_path, capsys):
    assert main(["train", "--config", "lora-12gb", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "--config lora-12gb is no file and none of full-8x80gb, lora-24gb, lora-80gb-1024" in error
    assert error.count("\n") == 1


def test_model_and_data_are_needed_somewhere(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text("steps = 1\n", encoding="utf-8")
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "--model and --data are needed, here or in a --config file" in capsys.readouterr().err


def test_every_option_of_the_command_can_be_in_a_file(monkeypatch):
    """But for those that say where: of the file, and of what is written."""
    import argparse

    parser = argparse.ArgumentParser()
    learning.add_to(parser.add_subparsers())
    options = vars(parser.parse_args(["train", "--out", "out"])).keys() - {
        "config",
        "out",
        "command",
        "into_folder",
    }
    nothing = Namespace(config=str(FILES[0]), **dict.fromkeys(options))
    monkeypatch.setattr(learning.tomllib, "loads", lambda text: {"no such": 1})
    with pytest.raises(ValueError, match="no such is no option; they are ") as error:
        learning._take_config(nothing)
    assert set(str(error.value).partition("they are ")[2].split(", ")) == options
