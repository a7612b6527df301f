"""A state or a log by somebody else: looked through before it is gone on from."""

import csv
import os
import pickle
import time
import zipfile

import pytest
import torch
from torch import nn

from coral_lab.sources.files import fresh_file
from coral_lab.training import resuming
from coral_lab.training.loop import TrainConfig, _learning, _optimizer, _resume, _save_state
from coral_lab.training.resuming import Log, read_state

MADE = {"steps": "9", "seed": "0"}


@pytest.fixture
def modules():
    torch.manual_seed(0)
    return {"network": nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))}


@pytest.fixture
def optimizer(modules):
    found = _optimizer(modules, TrainConfig(steps=9))
    modules["network"](torch.ones(1, 3)).sum().backward()
    found.step()
    return found


@pytest.fixture
def state(tmp_path, modules, optimizer):
    """A state as the loop writes it, to be changed."""
    file = tmp_path / "state.pt"
    _save_state(file, modules, optimizer, MADE, 1, 2.5)
    return torch.load(file, weights_only=True)


def refusal(tmp_path, modules, state=None) -> str:
    file = tmp_path / "state.pt"
    if state is not None:
        torch.save(state, file)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_state(file, dict(_learning(modules)), MADE, 9)
    said = str(caught.value)
    assert "state.pt " in said
    assert said.endswith("; choose another folder")
    assert "\n" not in said
    assert len(said) <= 300
    return said


def test_a_state_as_it_was_written_is_gone_on_from(tmp_path, modules, optimizer, state):
    before = {name: p.detach().clone() for name, p in _learning(modules)}
    moments = optimizer.state_dict()["state"]
    with torch.no_grad():
        for _, parameter in _learning(modules):
            parameter.zero_()
    fresh = _optimizer(modules, TrainConfig(steps=9))
    found = _resume(tmp_path / "state.pt", modules, fresh, MADE, 9)
    assert (found["step"], found["seconds"]) == (1, 2.5)
    for name, parameter in _learning(modules):
        assert torch.equal(parameter, before[name])
    for i, own in fresh.state_dict()["state"].items():
        assert all(torch.equal(own[name], moments[i][name]) for name in own)
    assert fresh.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": 10}, "is of step 10, and this run has 9"),
        ({"step": -1}, "is of step -1, and this run has 9"),
        ({"step": True}, "is of step True"),
        ({"step": 1.0}, r"is of step 1\.0"),
        ({"step": 10**400}, "is of step 1000"),
        ({"step": [1]}, "is of step a list"),
        ({"seconds": float("nan")}, "is of nan seconds"),
        ({"seconds": float("inf")}, "is of inf seconds"),
        ({"seconds": -1.0}, r"is of -1\.0 seconds"),
        ({"seconds": "1"}, "is of '1' seconds"),
        ({"made_with": None}, "does not say what it was made with"),
        ({"made_with": {"steps": ["9"]}}, "does not say what it was made with"),
        ({"made_with": MADE | {"seed": "1"}}, "was made with seed 1, and now it is 0"),
        ({"made_with": MADE | {"x": "1" * 10**6}}, "was made with x 1111"),
        ({"parameters": {}}, "has other parameters"),
        ({"parameters": None}, "has other parameters"),
        ({"optimizer": None}, "has an optimizer of other parameters"),
        ({"optimizer": {"state": [], "param_groups": []}}, "has an optimizer of other parameters"),
        ({"optimizer": {"state": {6: {}}}}, "has an optimizer of other parameters"),
        ({"optimizer": {"state": {0: {}}}}, "lacks Adam's moments of network.0.weight"),
        ({"more": 1}, "is no training state"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(tmp_path, modules, state, changes, says):
    import re

    assert re.search(says, refusal(tmp_path, modules, state | changes))


@pytest.mark.parametrize(
    "value", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(1), 5, None]
)
@pytest.mark.parametrize("place", ["parameter", "exp_avg", "exp_avg_sq"])
def test_tensors_must_fit_in_shape_and_kind(tmp_path, modules, state, value, place):
    if place == "parameter":
        state["parameters"]["network.0.weight"] = value
    else:
        state["optimizer"]["state"][0][place] = value
    assert "network.0.weight" in refusal(tmp_path, modules, state)


@pytest.mark.parametrize(
    "value", [torch.zeros(1, 3).expand(2, 3), torch.zeros(3, 2).T, torch.zeros(2, 3).to_sparse()]
)
def test_tensors_of_a_layout_of_their_own_are_refused(tmp_path, modules, state, value):
    state["parameters"]["network.0.weight"] = value
    assert "network.0.weight" in refusal(tmp_path, modules, state)


@pytest.mark.parametrize(
    "value", [torch.tensor(2.0), torch.tensor(-1.0), torch.tensor(float("nan")), torch.zeros(2), 1]
)
def test_adam_s_own_step_must_fit(tmp_path, modules, state, value):
    state["optimizer"]["state"][0]["step"] = value
    assert "network.0.weight" in refusal(tmp_path, modules, state)


def repack(file, change=None, compression=zipfile.ZIP_STORED, **more):
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in (members | more).items():
            archive.writestr(name, content)


def test_a_small_file_that_inflates_is_refused_before_it_is_read(tmp_path, modules, state, monkeypatch):
    """Zeros are packed a thousand to one."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    file = tmp_path / "state.pt"
    repack(file, compression=zipfile.ZIP_DEFLATED, bomb=bytes(2**26))
    assert file.stat().st_size < 2**20
    assert "is no state that torch wrote" in refusal(tmp_path, modules)


def with_torch_s_end(file):
    """Python's zipfile leaves the record out that torch always writes."""
    with zipfile.ZipFile(file) as archive:
        count, start = len(archive.infolist()), archive.start_dir
    content = file.read_bytes()[:-22]
    record = b"PK\6\6" + (44).to_bytes(8, "little") + bytes(12)
    record += b"".join(n.to_bytes(8, "little") for n in (count, count, len(content) - start, start))
    locator = b"PK\6\7" + bytes(4) + len(content).to_bytes(8, "little") + (1).to_bytes(4, "little")
    end = b"PK\5\6" + bytes(4) + 2 * count.to_bytes(2, "little")
    end += (len(content) - start).to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    file.write_bytes(content + record + locator + end)


def test_a_packed_member_is_refused_however_the_file_ends(tmp_path, modules, state, monkeypatch):
    file = tmp_path / "state.pt"
    repack(file)
    with_torch_s_end(file)
    read_state(file, dict(_learning(modules)), MADE, 9)  # as torch's own
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    repack(file, compression=zipfile.ZIP_DEFLATED, bomb=bytes(2**26))
    with_torch_s_end(file)
    assert "is compressed, and states are not" in refusal(tmp_path, modules)


def test_more_bytes_than_the_model_has_are_refused(tmp_path, modules, state, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    state["parameters"]["network.0.weight"] = torch.zeros(2**21)
    assert "has 8,39" in (said := refusal(tmp_path, modules, state))
    assert "a state of this model 4," in said


def test_members_that_overlap_are_counted_each(tmp_path, modules, state, monkeypatch):
    """Ten entries of a megabyte that are all the same megabyte of the file."""
    file = tmp_path / "state.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("0", bytes(2**20))
        for i in range(1, 10):
            archive.filelist.append(again := zipfile.ZipInfo(str(i)))
            for name in ("file_size", "compress_size", "CRC", "header_offset"):
                setattr(again, name, getattr(archive.filelist[0], name))
    with_torch_s_end(file)
    assert "takes 10,485,760 bytes when read" in refusal(tmp_path, modules)


def test_a_second_directory_is_refused(tmp_path, modules, state):
    """Before one archive stands another: readers differ in which they see."""
    file = tmp_path / "state.pt"
    content = file.read_bytes()
    file.write_bytes(bytes(100) + content)
    assert "is no state that torch wrote" in refusal(tmp_path, modules)
    file.write_bytes(content + b"comment")
    assert "is no state that torch wrote" in refusal(tmp_path, modules)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"x" * 200, pickle.dumps({"step": 1}), b"PK\5\6" + bytes(18)]
)
def test_what_is_no_state_is_refused(tmp_path, modules, content):
    (tmp_path / "state.pt").write_bytes(content)
    assert "is no state that torch wrote" in refusal(tmp_path, modules)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_no_code_in_a_state_is_run(tmp_path, modules, state):
    assert "cannot be read" in refusal(tmp_path, modules, state | {"made_with": Evil(tmp_path / "mark")})
    assert not (tmp_path / "mark").exists()


def test_a_state_that_is_a_link_is_refused(tmp_path, modules, state):
    (tmp_path / "state.pt").rename(tmp_path / "real")
    (tmp_path / "state.pt").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="is a link, which is not followed"):
        read_state(tmp_path / "state.pt", dict(_learning(modules)), MADE, 9)


def test_a_log_grows_row_by_row_and_by_columns(tmp_path):
    log = Log(tmp_path / "log.csv", 0)
    for step in (1, 2):
        log.write({"step": step, "loss": -0.123456789})
    log.write({"step": 3, "loss": 1.0, "=R@1": 0.5})
    log.write({"step": 4, "loss": 1.0})
    assert (tmp_path / "log.csv").read_bytes().split(b"\r\n") == [
        b"step,loss,'=R@1", b"1,-0.12346,", b"2,-0.12346,", b"3,1,0.5", b"4,1,", b"",
    ]  # fmt: off
    again = Log(tmp_path / "log.csv", 3)
    assert [row["step"] for row in again.rows] == ["1", "2", "3"]
    assert again.columns == ["step", "loss", "=R@1"]
    assert len(list(csv.reader((tmp_path / "log.csv").open(newline="")))) == 4


def test_a_log_whose_last_line_was_cut_by_a_kill_is_gone_on_from(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n2,0.4\n3")
    assert [row["step"] for row in Log(tmp_path / "log.csv", 2).rows] == ["1", "2"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"loss\n1\n",
        b"step,loss\n1\n",
        b"step\nx\n",
        b"step\n1,2\n",
        b"\xff\n",
        b"step\n" + b"1" * 5000 + b"\n",
    ],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "log.csv").write_bytes(content)
    if content == b"":
        assert Log(tmp_path / "log.csv", 2).rows == []
        return
    with pytest.raises(
        ValueError, match=r"log.csv cannot be gone on from \(.*\); delete it, or choose"
    ) as caught:
        Log(tmp_path / "log.csv", 2)
    assert "\n" not in str(caught.value)


def test_a_log_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "LONGEST_LOG", 10)
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n")
    with pytest.raises(ValueError, match="more than 10 bytes"):
        Log(tmp_path / "log.csv", 2)


@pytest.mark.parametrize("step", [0, 2])
def test_a_log_is_written_and_read_through_no_link(tmp_path, step):
    (tmp_path / "precious").write_text("step\n1\n")
    (tmp_path / "log.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is a link, which is not followed"):
        Log(tmp_path / "log.csv", step)
    (tmp_path / "log.csv").unlink()
    log = Log(tmp_path / "log.csv", 0)
    log.write({"step": 1})
    (tmp_path / "log.csv").unlink()
    (tmp_path / "log.csv").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="is a link, which is not followed"):
        log.write({"step": 2})
    assert (tmp_path / "precious").read_text() == "step\n1\n"


def test_a_row_costs_next_to_nothing(tmp_path):
    log = Log(tmp_path / "log.csv", 0)
    started = time.process_time()
    for step in range(1000):
        log.write({"step": step, "loss": 0.5})
    assert time.process_time() - started < 1


def test_a_state_has_no_name_that_can_be_guessed(tmp_path, modules, optimizer):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "state.tmp").symlink_to(tmp_path / "precious")
    _save_state(tmp_path / "state.pt", modules, optimizer, MADE, 1, 2.5)
    with fresh_file(tmp_path / "state.pt"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
