"""A saved checkpoint has a model card; one that somebody wrote stays."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from coral_lab import load
from coral_lab.models.saving import model_card, save


def test_a_checkpoint_is_saved_with_a_card_that_says_how_it_is_used(random_model, tmp_path):
    save(random_model, tmp_path / "mine", {"training": "none"})
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    for said in (
        "# mine\n",
        f"{random_model.dim} dimensions",
        "| training | none |",
        "Represent the given product: ",
    ):
        assert said in card
    save(load(tmp_path / "mine"), tmp_path / "mine", {"training": "more"})
    assert "| training | more |" in (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")


def test_a_card_that_somebody_wrote_stays(random_model, tmp_path):
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    save(random_model, tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def files_of(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_checkpoint_overwrites_no_link_s_target(random_folder, random_model, tmp_path):
    """Each of its files in turn, by name as somebody else would lay a trap."""
    for name in ("config.json", "model.safetensors", "README.md", "modules.json", "1_Pooling/config.json"):
        folder, precious = tmp_path / name.replace("/", "-"), tmp_path / "precious"
        (folder / name).parent.mkdir(parents=True)
        precious.write_text("precious")
        (folder / name).symlink_to(precious)
        with pytest.raises(ValueError, match=f"{name} is a link, which is not followed; remove it"):
            save(random_model, folder)
        assert precious.read_text() == "precious"
        assert not [own for own in os.listdir(folder) if own.endswith(".part")]
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "README.md").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"README\.md is a link"):
        save(random_model, tmp_path / "dangling")
    assert not (tmp_path / "nothing").exists()
    for name in ("link", "inner/1_Pooling"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(random_folder)
        with pytest.raises(ValueError, match="is a link; name the folder that it leads to"):
            save(random_model, (tmp_path / name) if name == "link" else tmp_path / "inner")


def test_weights_of_before_do_not_stay(random_folder, random_model, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    old = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    )
    for name in (*old, "adapter_model.safetensors", "notes.txt", "model-mine.safetensors"):
        (folder / name).write_text("old")
    save(random_model, folder)
    kept = {*files_of(folder)} - {*files_of(random_folder)}
    assert kept == {"adapter_model.safetensors", "notes.txt", "model-mine.safetensors"}
    assert {*files_of(random_folder)} <= {*files_of(folder)}
    for name in ("config.json", "model.safetensors", "README.md"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == stat.S_IMODE(
            (folder / "notes.txt").stat().st_mode
        )


def test_a_card_s_table_has_a_row_a_fact(random_model):
    card = model_card(replace(random_model, name="x\n\n# y\x1b[2J"), "mine", {"training": "a\nb"})
    assert "| started from | x # y [2J |\n| training | a b |" in card
