"""A saved checkpoint has a model card; one that somebody wrote stays."""

from coral_lab import load
from coral_lab.models.saving import save


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
