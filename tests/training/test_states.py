"""A state by somebody else, of another run, or cut short: looked through before it is gone on from."""

import errno
import json
import math
import os
import pickle
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed import checkpoint

from coral_lab.training import loop, states
from coral_lab.training.config import TrainConfig
from coral_lab.training.states import Progress

MADE = {"steps": "9", "seed": "0"}
WEIGHT = "network.0.weight"


def learning():
    """A small network and an optimizer that has done a step."""
    torch.manual_seed(0)
    modules = {"network": nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))}
    optimizer = loop._optimizer(modules, TrainConfig(steps=9))
    modules["network"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return modules, optimizer


def save(out, own, step=1, best=(0, -math.inf)):
    loop._save_state(out, *own, Progress(step, 2.5, MADE, best))
    return out / f"state-{step:08d}"


def resume(out, own) -> Progress:
    return loop._resume(out, *own, MADE, 9)


@pytest.fixture
def own():
    return learning()


@pytest.fixture
def state(tmp_path, own):
    """A state as the loop writes it, to be changed."""
    return save(tmp_path, own)


def refusal(out, own, name="state-00000001") -> str:
    """What is said of a state, with nothing of it taken over."""
    before = {name: value.detach().clone() for name, value in loop._tensors(*own).items()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        resume(out, own)
    said = str(caught.value)
    assert name in said
    assert said.isprintable()
    assert len(said) <= 300
    assert all(torch.equal(value, before[name]) for name, value in loop._tensors(*own).items())
    return said


def written(state) -> dict:
    return json.loads((state / "state.json").read_text(encoding="utf-8"))


def tensors_file(state):
    (file,) = state.glob("*.safetensors")
    return file


def test_a_state_as_it_was_written_is_gone_on_from(tmp_path, own, state):
    expected = loop._tensors(*own)
    modules, optimizer = learning()
    with torch.no_grad():
        for value in loop._tensors(modules, optimizer).values():
            value.zero_()
    found = resume(tmp_path, (modules, optimizer))
    assert (found.step, found.seconds, found.best) == (1, 2.5, (0, -math.inf))
    restored = loop._tensors(modules, optimizer)
    assert restored.keys() == expected.keys()
    assert {name.rpartition(".")[2] for name in restored} == {
        *("weight", "bias", "step", "exp_avg", "exp_avg_sq")
    }
    for name, value in expected.items():
        assert torch.equal(restored[name], value), name
    assert restored[f"{WEIGHT}.step"] == 1
    assert restored[f"{WEIGHT}.exp_avg"].abs().max() > 0


def test_without_a_state_a_run_begins_at_the_first_step(tmp_path, own):
    assert resume(tmp_path, own) == Progress(0, 0.0, MADE)


SHAPES = st.lists(st.integers(1, 4), max_size=3)
KINDS = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(SHAPES, KINDS), min_size=1, max_size=4))
def test_tensors_of_any_name_shape_and_kind_come_back_to_the_bit(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("any") / "state"
    drawn.pop("__metadata__", None)
    tensors = {name: torch.randn(shape).to(kind) for name, (shape, kind) in drawn.items()}
    states.write(folder, tensors)
    found = {name: torch.full_like(value, math.nan) for name, value in tensors.items()}
    states.read(folder, found)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": 10}, "is of step 10, and this run has 9"),
        ({"step": -1}, "is of step -1, and this run has 9"),
        ({"step": True}, "is of step True"),
        ({"step": 1.0}, r"is of step 1\.0"),
        ({"step": 10**400}, "is of step 1000"),
        ({"step": [1] * 10**5}, r"is of step \[1, 1"),
        ({"step": None}, "is of step None"),
        ({"seconds": math.nan}, "is of nan seconds"),
        ({"seconds": math.inf}, "is of inf seconds"),
        ({"seconds": -1.0}, r"is of -1\.0 seconds"),
        ({"seconds": "1" * 10**5}, "is of 1{40} seconds"),
        ({"made_with": None}, "does not say what it was made with"),
        ({"made_with": {"steps": ["9"]}}, "does not say what it was made with"),
        ({"made_with": {}}, "was made with steps None, and now it is 9"),
        ({"made_with": MADE | {"seed": "1"}}, "was made with seed 1, and now it is 0"),
        ({"made_with": MADE | {"x": "1" * 10**5}}, "was made with x 1{60}, and now it is None"),
        ({"best": [2, 0.5]}, r"has \[2, 0.5\] for its best step"),
        ({"best": [0, 0.5]}, r"has \[0, 0.5\] for its best step"),
        ({"best": [True, 0.5]}, r"has \[True, 0.5\] for its best step"),
        ({"best": [1, math.nan]}, r"has \[1, nan\] for its best step"),
        ({"best": [1]}, r"has \[1\] for its best step"),
        ({"best": "no"}, "has no for its best step"),
        ({"more": 1}, "is no training state"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(tmp_path, own, state, changes, says):
    (state / "state.json").write_text(json.dumps(written(state) | changes))
    said = refusal(tmp_path, own)
    assert re.search(says, said), said
    assert "state.json" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[" * 10**5 + b"]" * 10**5, "cannot be read"),
        (b'{"step": ' + b"1" * 5000 + b"}", "cannot be read"),
        (b" " * (2**20 + 1), "it has more than 1,048,576 bytes"),
        (b"[]", "is no training state"),
        (b"null", "is no training state"),
        (pickle.dumps({"step": 1}), "cannot be read"),
    ],
)
def test_what_is_no_state_is_refused(tmp_path, own, state, content, says):
    (state / "state.json").write_bytes(content)
    assert says in refusal(tmp_path, own)


def test_a_state_without_what_it_says_of_itself_is_refused(tmp_path, own, state):
    content = written(state)
    for name in content:
        (state / "state.json").write_text(json.dumps({k: v for k, v in content.items() if k != name}))
        assert "is no training state" in refusal(tmp_path, own)
    (state / "state.json").unlink()
    assert "cannot be read" in refusal(tmp_path, own)


def change(state, name, value):
    """One tensor of a state by another, or without it if `value` is None."""
    file = tensors_file(state)
    tensors = load_file(file)
    tensors[name] = value
    save_file({k: v for k, v in tensors.items() if v is not None}, file)


def test_a_file_of_plain_safetensors_will_do(tmp_path, own, state):
    change(state, WEIGHT, torch.full((2, 3), 7.0))
    resume(tmp_path, own)
    assert (loop._tensors(*own)[WEIGHT] == 7).all()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(3, 2), r"as \[3, 2\] float32, and the model as \[2, 3\] float32"),
        (torch.zeros(6), r"as \[6\] float32, and"),
        (torch.zeros(1), r"as \[1\] float32, and"),
        (torch.zeros(1, 3), r"as \[1, 3\] float32, and"),
        (torch.zeros(2, 3, dtype=torch.float64), r"as \[2, 3\] float64, and"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), r"as \[2, 3\] bfloat16, and"),
        (torch.zeros(2, 3, dtype=torch.int32), r"as \[2, 3\] int32, and"),
        (None, "is missing"),
    ],
)
@pytest.mark.parametrize("place", [WEIGHT, f"{WEIGHT}.exp_avg", f"{WEIGHT}.exp_avg_sq"])
def test_tensors_must_fit_in_shape_and_kind(tmp_path, own, state, value, says, place):
    change(state, place, value)
    said = refusal(tmp_path, own)
    assert re.search(says, said), said
    assert place in said


def test_parameters_of_another_model_are_refused(tmp_path, own, state):
    change(state, "x" * 10**4, torch.zeros(1))
    assert re.search("has other parameters .x{80} is not this model's", refusal(tmp_path, own))


def test_adam_s_own_step_must_be_a_single_number(tmp_path, own, state):
    change(state, f"{WEIGHT}.step", torch.zeros(2))
    assert f"{WEIGHT}.step as [2] float32" in refusal(tmp_path, own)


def shards(state, *parts):
    """The state's tensors cut by rows into files of several processes: (first row, rows, told offset)."""
    file = tensors_file(state)
    tensors = load_file(file)
    file.unlink()
    for number, (start, count, told) in enumerate(parts):
        some = {name: value for name, value in tensors.items() if value.ndim or not number}
        rows = {name: value[start : start + count] if value.ndim else value for name, value in some.items()}
        first = {name: [told, *[0] * value.ndim][: value.ndim] for name, value in rows.items()}
        at = {name: {"saved_offsets": place} for name, place in first.items()}
        own = {name: value.contiguous() for name, value in rows.items()}
        save_file(own, state / f"shard-{number}.safetensors", {"DCP_SHARDING_INFO": json.dumps(at)})
    return tensors


def test_a_state_of_two_processes_is_read_by_one(tmp_path, own, state):
    expected = shards(state, (0, 1, 0), (1, 1, 1))
    with torch.no_grad():
        for value in loop._tensors(*own).values():
            value.zero_()
    resume(tmp_path, own)
    assert all(torch.equal(value, expected[name]) for name, value in loop._tensors(*own).items())


@pytest.mark.parametrize(
    "parts",
    [
        [(1, 1, 1)],  # the first rows are missing
        [(0, 1, 0)],  # the last
        [(0, 1, 0), (0, 1, 0)],  # one twice, and another not at all
        [(0, 1, 1), (1, 1, 1)],
        [(0, 1, 0), (0, 2, 0)],  # overlapping
        [(0, 2, -1), (0, 2, 0)],
        [(0, 1, 0), (1, 1, 10**12)],
    ],
)
def test_a_part_of_a_tensor_is_not_enough(tmp_path, own, state, parts):
    shards(state, *parts)
    refusal(tmp_path, own)


@pytest.mark.parametrize(
    "info", ["", "{", "[]", "{}", "[" * 10**5, json.dumps({WEIGHT: {"saved_offsets": ["a", {}]}})]
)
def test_junk_for_where_a_part_belongs_is_refused_or_passed_over(tmp_path, own, state, info):
    file = tensors_file(state)
    save_file(load_file(file), file, {"DCP_SHARDING_INFO": info})
    if info:
        assert "cannot be read" in refusal(tmp_path, own)
    else:
        assert resume(tmp_path, own).step == 1


def test_a_file_cut_short_is_refused(tmp_path, own, state):
    file = tensors_file(state)
    content = file.read_bytes()
    for length in (0, 4, 8, 100, len(content) - 1):
        file.write_bytes(content[:length])
        assert "cannot be read" in refusal(tmp_path, own)
    file.unlink()
    assert "has other parameters" in refusal(tmp_path, own)


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + bytes(100),
        (2**20).to_bytes(8, "little") + b"[" * 2**20,
        b"PK\3\4" + bytes(100),
        pickle.dumps(os.system),
    ],
)
def test_what_is_no_safetensors_is_refused(tmp_path, own, state, content):
    tensors_file(state).write_bytes(content)
    assert "cannot be read" in refusal(tmp_path, own)


def test_more_bytes_than_the_model_has_are_not_read(tmp_path, own, state, monkeypatch):
    monkeypatch.setattr(checkpoint, "HuggingFaceStorageReader", lambda *_: pytest.fail("read"))
    with (state / "more.safetensors").open("wb") as file:
        file.truncate(2**40)
    said = refusal(tmp_path, own)
    assert "has 1,099,5" in said
    assert "a state of this model 4," in said


@pytest.mark.parametrize("name", ["state.json", "model-00001-of-00001.safetensors", "anything"])
def test_a_link_in_a_state_is_not_followed(tmp_path, own, state, name):
    file = state / name
    (tmp_path / "precious").write_bytes(file.read_bytes() if file.exists() else b"")
    file.unlink(missing_ok=True)
    file.symlink_to(tmp_path / "precious")
    assert "is a link, which is not followed" in refusal(tmp_path, own, name)


@pytest.mark.parametrize("name", ["state.json", "model-00001-of-00001.safetensors", "more.safetensors"])
@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
def test_a_pipe_or_folder_in_a_state_is_not_waited_for(tmp_path, own, state, name, kind):
    (state / name).unlink(missing_ok=True)
    kind(state / name)
    assert "is no regular file" in refusal(tmp_path, own, name)


def test_a_file_by_the_name_of_a_state_is_refused(tmp_path, own):
    (tmp_path / "state-00000003").write_text("3")
    assert "is no folder, and a state is one" in refusal(tmp_path, own, "state-00000003")


def test_a_state_of_an_earlier_version_is_refused_by_name(tmp_path, own, state):
    (tmp_path / "state.pt").write_bytes(b"PK")
    said = refusal(tmp_path, own, "state.pt")
    assert "is of a version of coral_lab before 0.3" in said
    assert said.endswith("choose another folder")


def test_of_two_whole_states_the_newer_is_gone_on_from(tmp_path, own, state):
    """A kill between writing the second and taking the first away."""
    shutil.copytree(state, tmp_path / "kept")
    with torch.no_grad():
        own[0]["network"][0].weight.fill_(5)
    save(tmp_path, own, 2)
    assert not state.exists()
    (tmp_path / "kept").rename(state)
    assert resume(tmp_path, own).step == 2
    assert (own[0]["network"][0].weight == 5).all()
    save(tmp_path, own, 3)
    assert [folder.name for folder in tmp_path.iterdir()] == ["state-00000003"]


def test_a_state_whose_writing_was_killed_is_passed_over_and_taken_away(tmp_path, own, state):
    for step in (2, 7):
        part = tmp_path / f".state-0000000{step}.part"
        part.mkdir()
        (part / "model-00001-of-00001.safetensors").write_bytes(b"cut")
        (part / "junk.safetensors").write_bytes(b"junk")
    assert resume(tmp_path, own).step == 1
    save(tmp_path, own, 2)
    assert [folder.name for folder in tmp_path.iterdir()] == ["state-00000002"]
    assert resume(tmp_path, own).step == 2


FULL = OSError(errno.ENOSPC, "No space left on device")


def fails(*_, **__):
    raise FULL


def half_a_file(folder, tensors):
    (folder / "model.safetensors").write_bytes(b"half")
    raise FULL


@pytest.mark.parametrize(
    ("place", "name", "how"),
    [
        (states, "_save", half_a_file),
        (states, "write_progress", fails),
        (checkpoint.HuggingFaceStorageWriter, "write_data", fails),
        (checkpoint.HuggingFaceStorageWriter, "finish", fails),
    ],
)
def test_on_a_full_disk_the_last_state_stays_and_one_line_says_so(
    tmp_path, own, state, monkeypatch, place, name, how
):
    before = {file.name: file.read_bytes() for file in state.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(place, name, how)
        with pytest.raises(OSError, match="state-00000002 could not be written") as caught:
            save(tmp_path, own, 2)
    said = str(caught.value)
    assert "No space left on device" in said
    assert said.endswith("; state-00000001 stays: mend that, start again")
    assert said.isprintable()
    assert [folder.name for folder in tmp_path.iterdir()] == ["state-00000001"]
    assert {file.name: file.read_bytes() for file in state.iterdir()} == before
    assert resume(tmp_path, own).step == 1
    save(tmp_path, own, 2)  # when there is room again
    assert resume(tmp_path, own).step == 2


def test_where_no_state_was_before_it_says_so(tmp_path, own, monkeypatch):
    monkeypatch.setattr(states, "_save", half_a_file)
    with pytest.raises(OSError, match="there is none before it"):
        save(tmp_path, own)
    assert not list(tmp_path.iterdir())


def test_the_best_weights_stay_beside_the_state_and_others_go(tmp_path, own, state):
    parameters = loop._parameters(own[0])
    for step in (1, 2):
        states.write(tmp_path / f"best-0000000{step}", parameters)
    save(tmp_path, own, 3, (2, 0.25))
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["best-00000002", "state-00000003"]
    assert resume(tmp_path, own).best == (2, 0.25)


def test_a_state_without_its_best_weights_is_refused_before_a_step(tmp_path, own):
    state = save(tmp_path, own, 3, (2, 0.25))
    assert "is no folder" in refusal(tmp_path, own, "best-00000002")
    shutil.copytree(state, tmp_path / "best-00000002")
    assert "is not this model's" in refusal(tmp_path, own, "best-00000002")  # with Adam's moments


def test_a_state_is_written_through_no_link(tmp_path, own):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "a").write_text("precious")
    (tmp_path / ".state-00000001.part").symlink_to(precious)
    with pytest.raises(OSError, match="could not be written"):
        save(tmp_path, own)
    assert (precious / "a").read_text() == "precious"
