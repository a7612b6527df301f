"""A checkpoint's files lead nowhere but to the hub cache's own; loading asks no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coral_lab import load
from coral_lab.errors import CheckpointError
from coral_lab.models.folder_files import VALUES, look_over, read_json
from tests.models.layouts import Layout, write, write_json

MINI = Path(__file__).parents[2] / "data/coral-mini"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(home: Path, name: str = "some/model", source: Path = MINI) -> Path:
    """A checkpoint as the hub's cache keeps it: files by their digests, and links to them."""
    repository = home / f"hub/models--{name.replace('/', '--')}"
    snapshot = repository / f"snapshots/{COMMIT}"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    for i, file in enumerate(sorted(file for file in source.iterdir() if file.is_file())):
        shutil.copy(file, repository / f"blobs/{i:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:040x}")
    return snapshot


def test_the_hub_caches_own_links_are_followed(tmp_path):
    folder = cached(tmp_path)
    theirs = load(MINI, device="cpu").network.state_dict()
    mine = load(folder, device="cpu").network.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
@pytest.mark.parametrize("kind", ["a folder", "a cache", "a cache's blob"])
def test_no_other_link_leads_out(name, kind, tmp_path):
    folder = write(MINI, tmp_path / "mini", Layout()) if kind == "a folder" else cached(tmp_path)
    other = shutil.copy(MINI / name, tmp_path / "elsewhere")
    link = (folder / name).resolve() if kind == "a cache's blob" else folder / name
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(CheckpointError, match=f"{name} is a link that leads out of the folder; put the file"):
        load(folder)


def test_a_link_within_the_folder_and_a_linked_folder_are_no_fault(tmp_path):
    folder = write(MINI, tmp_path / "mini", Layout())
    (folder / "config.json").rename(folder / "own.json")
    (folder / "config.json").symlink_to("own.json")
    (tmp_path / "link").symlink_to(folder)
    assert load(tmp_path / "link", device="cpu").dim == 128


def test_what_nobody_reads_may_be_anything(tmp_path):
    folder = write(MINI, tmp_path / "mini", Layout())
    (folder / "trainer_state.json").symlink_to("/dev/zero")
    (folder / "notes.txt").write_text("a" * 2**21)
    look_over(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" + "0," * VALUES + "0]", r"tokenizer.json has about 1,048,577 values, more than 1,048,576; copy"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "tokenizer.json is nested more than 64 deep; copy it again"),
        (
            '{"a": "' + "a" * 2**25 + '"}',
            r"has 33,554,441 bytes, more than 33,554,432; it is none of Qwen2.5-VL's",
        ),
    ],
)
def test_json_is_bounded(content, says, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(CheckpointError, match=says):
        read_json(file)


def test_a_header_is_bounded(tmp_path):
    folder = write(MINI, tmp_path / "mini", Layout())
    with (folder / "model.safetensors").open("r+b") as file:
        file.write((10**9).to_bytes(8, "little"))
    os.truncate(folder / "model.safetensors", 2 * 10**9)
    with pytest.raises(CheckpointError, match="its header has 1,000,000,000 bytes, more than 8,388,608"):
        load(folder)


CHILD = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("asked", event, args, flush=True)
        raise PermissionError(event)
sys.addaudithook(watch)
from coral_lab import load
from coral_lab.errors import CheckpointError
for line in sys.stdin:
    name = line.rstrip().removesuffix(" offline")
    try:
        print("dim", load(name, device="cpu", offline=name != line.rstrip()).dim, flush=True)
    except CheckpointError as error:
        print("refused", error, flush=True)
"""


def test_loading_makes_no_connection_unless_a_hub_id_is_to_be_fetched(tmp_path):
    cached(tmp_path)
    small = {
        f"base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{part}.weight": torch.ones(
            shape
        )
        for part, shape in {"A": (2, 128), "B": (128, 2)}.items()
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ".*layers.0.*q_proj"}
    for name, base in {"here": "some/model", "gone": "other/model", "shipped": "mini"}.items():
        (tmp_path / name).mkdir()
        save_file(small, tmp_path / name / "adapter_model.safetensors")
        write_json(tmp_path / name / "adapter_config.json", config | {"base_model_name_or_path": base})
    asked = ["some/model offline", "other/model offline", "mini", str(MINI), str(tmp_path / "here")]
    asked += [
        str(tmp_path / "gone"),
        str(tmp_path / "shipped"),
        f"{tmp_path / 'gone'} offline",
        "other/model",
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD]
    place = Path(__file__).parents[2]
    said = subprocess.run(
        command,
        input="\n".join(asked),
        text=True,
        capture_output=True,
        env=environment,
        cwd=place,
        timeout=120,
    ).stdout.splitlines()
    whole = said[: len(asked) - 1]
    assert [line.split()[0] for line in whole] == [
        "dim",
        "refused",
        *["dim"] * 3,
        "refused",
        "dim",
        "refused",
    ]
    assert "load it once without offline" in whole[1]
    way = "other/model, which is not downloaded; download it first: coral-lab download --model other/model"
    assert way in whole[5]
    assert way in whole[7]
    assert any(line.startswith("asked socket") for line in said[len(whole) :])  # the guard sees what is asked


def test_a_base_that_brings_an_adapter_is_refused(tmp_path):
    base = write(MINI, tmp_path / "base", Layout())
    (tmp_path / "mine").mkdir()
    weights = load_file(MINI / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    rows = weights[f"{name}.weight"].shape[1]
    pair = {"A": torch.ones(2, rows), "B": torch.ones(128, 2)}
    save_file(
        {f"{name}.lora_{part}.weight": own for part, own in pair.items()},
        tmp_path / "mine/adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(base)}
    (tmp_path / "mine/adapter_config.json").write_text(json.dumps(config))
    assert load(tmp_path / "mine", device="cpu").dim == 128
    (base / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "evil/model"}))
    with pytest.raises(
        CheckpointError, match="is for a base that is itself an adapter; merge and save that one"
    ):
        load(tmp_path / "mine")
