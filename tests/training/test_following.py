"""What is seen of a run: its log, which a kill does not spoil, trackers by name, and memory."""

import csv
import time

import pytest
import torch

from coral_lab.errors import MissingExtraError
from coral_lab.training import distributed, following
from coral_lab.training.following import Log, memory, tracker


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


def test_a_run_from_the_first_step_begins_a_log_anew(tmp_path):
    Log(tmp_path / "log.csv", 0).write({"step": 1, "loss": 1.0})
    assert Log(tmp_path / "log.csv", 0).rows == []
    assert "1" not in (tmp_path / "log.csv").read_text()


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
    monkeypatch.setattr(following, "LONGEST_LOG", 10)
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


def test_memory_grows_with_what_is_taken():
    before = memory(torch.device("cpu"))
    assert 0.01 < before < 1000  # GB: this process has imported torch
    taken = bytearray(b"1") * (int(1.1e9 * before) + 2**28)
    assert memory(torch.device("cpu")) > before
    assert len(taken) > 0


class Fake:
    """A tracker as accelerate's are: made, begun, told the settings, told rows, ended."""

    def __init__(self, run_name, **places):
        self.calls = [("made", run_name, {name: str(place) for name, place in places.items()})]
        Fake.made = self

    def start(self):
        self.calls.append(("start",))

    def store_init_configuration(self, values):
        self.calls.append(("settings", values))

    def log(self, values, step):
        self.calls.append(("row", values, step))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def fake(monkeypatch):
    """Both trackers in place of accelerate's, and their packages as if installed."""
    from accelerate import tracking

    for name, kind in following.TRACKERS.items():
        monkeypatch.setattr(tracking, kind, Fake)
        monkeypatch.setattr(following, "find_spec", lambda name: name)
    Fake.made = None


@pytest.mark.parametrize(("name", "place"), [("tensorboard", "logging_dir"), ("wandb", "dir")])
def test_a_tracker_has_every_row_and_is_ended_whatever_happens(fake, tmp_path, name, place):
    def stopped():
        with tracker(name, tmp_path, {"seed": "0"}) as track:
            track({"step": 3, "loss": 0.5})
            raise KeyError

    with pytest.raises(KeyError):
        stopped()
    assert Fake.made.calls == [
        ("made", "coral_lab", {place: str(tmp_path)}),
        ("start",),
        ("settings", {"seed": "0"}),
        ("row", {"loss": 0.5}, 3),
        ("finish",),
    ]


def test_accelerate_has_what_is_asked_of_a_tracker():
    from accelerate import tracking

    for name in following.TRACKERS.values():
        kind = getattr(tracking, name)
        for method in ("start", "store_init_configuration", "log", "finish"):
            assert callable(getattr(kind, method)), (name, method)


def test_only_the_first_process_tells_a_tracker(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    with tracker("wandb", tmp_path, {}) as track:
        track({"step": 1})
    assert Fake.made is None


def test_without_a_tracker_rows_go_nowhere(tmp_path):
    with tracker(None, tmp_path, {}) as track:
        track({"step": 1})
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_and_one_that_is_not_installed_are_named(tmp_path, monkeypatch):
    with (
        pytest.raises(ValueError, match="tracker is 'mlflow'; use tensorboard or wandb"),
        tracker("mlflow", tmp_path, {}),
    ):
        pass
    monkeypatch.setattr(following, "find_spec", lambda name: None)
    with (
        pytest.raises(MissingExtraError, match="'wandb' is not installed; run: pip install wandb"),
        tracker("wandb", tmp_path, {}),
    ):
        pass


def test_tensorboard_s_own_files_have_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracker("tensorboard", tmp_path, {"seed": "0"}) as track:
        track({"step": 1, "loss": 0.5})
        track({"step": 2, "loss": 0.25})
    events = EventAccumulator(str(tmp_path / "coral_lab")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
