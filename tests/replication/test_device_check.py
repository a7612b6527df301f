"""`check-device` at its small size on the CPU; what breaks is a row, and ends nothing else."""

import logging

import pandas as pd
import pytest
import torch

from coral_lab.replication import device_check
from coral_lab.replication.device_bench import Bench, Figure, built, device_of, full_float32, said
from coral_lab.replication.device_check import FILE, check_device, table_text
from coral_lab.replication.device_training import MODES, _layers_that_fit


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("device") / "new"
    return check_device("cpu", size="small", out=out), out


def test_every_row_is_ok_or_left_out_with_its_reason(whole):
    frame, _ = whole
    assert not len(frame.query("verdict == 'failed'")), frame.query("verdict == 'failed'").to_string()
    assert {*frame["verdict"]} == {"ok", "left out"}
    assert frame.query("verdict == 'left out'")["why"].str.len().min() > 5
    assert (frame.query("verdict == 'left out'")["value"] == "").all()
    assert frame["check"].is_unique
    assert (frame["seconds"] >= 0).all()
    assert frame["why"].str.len().max() <= 300


def test_what_was_asked_is_there(whole):
    frame, out = whole
    names = "\n".join(frame["check"])
    asked = ["FlashAttention 2", "float32: apart from the CPU", "encode / card's loop", "batch of 128: peak"]
    asked += ["out of memory: batches halved", "small: loaded by cl.load", "quick path", "package peft"]
    for part in asked + [f"small, {mode.name}: loss beside" for mode in MODES]:
        assert part in names, part
    assert [file.name for file in out.iterdir()] == [FILE], "no checkpoint stays"
    kept = pd.read_csv(out / FILE, keep_default_na=False)
    assert list(kept["check"]) == list(frame["check"])
    assert list(kept["verdict"]) == list(frame["verdict"])


def test_the_table_says_how_many_rows_are_of_each_verdict(whole):
    frame, _ = whole
    lines = table_text(frame).splitlines()
    assert len(lines) == len(frame) + 2
    assert lines[-1].startswith(f"{(frame['verdict'] == 'ok').sum()} ok, ")


def good(bench: Bench):
    yield Figure("a", 1.0, "s")
    yield Figure("b", 2.0, below=1.0)


def broken(bench: Bench):
    yield Figure("c", 1, at_least=1)
    raise RuntimeError("the device\nis on fire")


def lacking(bench: Bench):
    from coral_lab.errors import require

    require("no_such_thing", "train")
    yield Figure("never", 1)


def test_a_check_that_breaks_is_a_failed_row_and_ends_no_other(tmp_path, monkeypatch):
    kept = []

    def look(bench: Bench):
        kept.append(len(pd.read_csv(tmp_path / FILE)))
        yield Figure("d", float("nan"))

    monkeypatch.setattr(device_check, "CHECKS", (good, broken, lacking, look))
    frame = check_device("cpu", size="small", out=tmp_path).set_index("check")
    assert list(frame.index) == ["a", "b", "c", "broken", "lacking", "d"]
    assert list(frame["verdict"]) == ["ok", "failed", "ok", "failed", "left out", "failed"]
    assert frame.loc["broken", "why"] == "RuntimeError: the device is on fire"
    assert "no_such_thing" in frame.loc["lacking", "why"]
    assert frame.loc["b", "wanted"] == "< 1"
    assert frame.loc["c", "wanted"] == "≥ 1"
    assert kept == [5], "what was found before is in the file"


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "nonsense:1", "meta"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(ValueError, match=f"device is '{name}', which is not here; use .*cpu"):
        check_device(name, size="small", out=tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_size_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match="size is '7b'; use 3b or small"):
        check_device("cpu", size="7b", out=tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_folder_is_looked_at_first(tmp_path, monkeypatch):
    monkeypatch.setattr(device_check, "CHECKS", (lambda bench: pytest.fail("too early"),))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="which is no folder; name another"):
        check_device("cpu", size="small", out=tmp_path / "file")
    (tmp_path / FILE).symlink_to(tmp_path / "file")
    with pytest.raises(ValueError, match="is a link"):
        check_device("cpu", size="small", out=tmp_path)


def test_the_best_device_is_taken():
    assert device_of(None).type in ("cuda", "mps", "cpu")
    assert device_of("cpu") == torch.device("cpu")


def test_the_3b_has_its_published_number_of_parameters():
    model = built(torch.device("meta"), "3b")
    assert sum(p.numel() for p in model.network.parameters()) == 3_754_622_976
    assert model.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32
    assert (model.dim, model.network.config.vision_config.window_size) == (2048, 112)


def test_as_many_layers_learn_as_fit(random_model, tmp_path, monkeypatch):
    from coral_lab.replication import device_training

    bench = Bench(torch.device("cpu"), "3b", tmp_path)
    for space, layers in ((None, 0), (0.0, -1), (1e12, 3)):
        monkeypatch.setattr(device_training, "room", lambda device, space=space: space)
        found = _layers_that_fit(bench, random_model, MODES[0])
        assert found == layers or (layers == -1 and found < 1)


def test_what_is_changed_for_a_while_is_as_before():
    before = torch.backends.cudnn.allow_tf32
    with full_float32():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    log = logging.getLogger("coral_lab.somewhere")
    with said() as lines:
        log.warning("one %s", "line")
    log.warning("another")
    assert lines == ["one line"]
