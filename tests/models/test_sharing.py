"""A trained folder is published as it is loaded, without what only training needs; what the hub refuses is
one line.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects

from coral_lab.errors import HubError
from coral_lab.models.saving import save
from coral_lab.models.sharing import push_to_hub


@pytest.fixture
def hub(monkeypatch):
    """What a hub without a network would have been given."""
    asked = {}

    def create(self, name, **options):
        asked["created"] = (name, options)

    def upload(self, **options):
        folder = Path(options["folder_path"])
        names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
        own = {key: options[key] for key in ("allow_patterns", "ignore_patterns")}
        asked["files"] = sorted(filter_repo_objects(names, **own))
        return SimpleNamespace(commit_url=f"https://hub/{options['repo_id']}/commit/1")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return asked


def test_what_loads_is_published_and_the_states_of_training_are_not(random_model, tmp_path, hub):
    save(random_model, tmp_path)
    for name in ("state-00000004", "best-00000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard-00001-model-00001-of-00001.safetensors").touch()
        (tmp_path / name / "state.json").touch()
    for name in ("log.csv", "decoders.safetensors", "failed-step.json", "notes.md", ".token"):
        (tmp_path / name).touch()
    assert push_to_hub(tmp_path, "me/mine") == "https://hub/me/mine/commit/1"
    assert hub["created"] == ("me/mine", {"private": True, "exist_ok": True})
    expected = {"model.safetensors", "config.json", "README.md", "modules.json", "1_Pooling/config.json"}
    assert expected | {"log.csv", "decoders.safetensors", "tokenizer.json"} <= set(hub["files"])
    for name in hub["files"]:
        assert not name.startswith(("state-", "best-", ".", "notes", "failed"))


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../mine", "me/mi ne", ""])
def test_what_is_no_hub_id_is_refused(tmp_path, hub, name):
    with pytest.raises(ValueError, match="is no hub id; give OWNER/NAME"):
        push_to_hub(tmp_path, name)
    assert not hub


def test_a_folder_without_weights_is_refused(tmp_path, hub):
    with pytest.raises(ValueError, match="has no weights; give the folder of a finished training"):
        push_to_hub(tmp_path, "me/mine")
    assert not hub


def test_what_the_hub_refuses_is_one_line(random_model, tmp_path, hub, monkeypatch):
    save(random_model, tmp_path)

    def refuse(*_, **__):
        raise LocalTokenNotFoundError("Token is required,\\nbut no token found.")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(
        HubError, match=r"me/mine could not be published .*log in by `hf auth login`"
    ) as error:
        push_to_hub(tmp_path, "me/mine")
    assert "\n" not in str(error.value)
