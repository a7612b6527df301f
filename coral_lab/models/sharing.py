"""Publishing a trained checkpoint on the hub: the files that load, and no others."""

import os
from pathlib import Path

from coral_lab.errors import HubError, one_line
from coral_lab.models.folder_files import FILES
from coral_lab.models.loading import HUB_ID

BESIDE = ("README.md", "modules.json", "*/config.json", "*sentence*.json", "decoders.safetensors", "log.csv")
"""What a trained folder has besides what is loaded: its card, what sentence-transformers reads, the log."""


def check_repository(name: str) -> None:
    """Raises ValueError for what is no hub id."""
    if not HUB_ID.fullmatch(name):
        raise ValueError(one_line(f"{name!r} is no hub id; give OWNER/NAME"))


def push_to_hub(folder: str | os.PathLike, name: str, *, private: bool = True) -> str:
    """Publish a folder that `save` or training wrote as repository `name`, made if it is not there; returns
    its address. Nobody else sees it unless `private` is False. States of the training stay here.

    `huggingface-cli login` or $HF_TOKEN says who publishes. Raises ValueError for what is no hub id or no
    checkpoint, HubError for whatever the hub refuses.
    """
    check_repository(name)
    folder = Path(folder)
    if not any(folder.glob("*model*.safetensors")):
        raise ValueError(one_line(f"{folder} has no weights; give the folder of a finished training"))
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            folder_path=folder,
            repo_id=name,
            allow_patterns=[*FILES, *BESIDE],
            ignore_patterns=["state-*", "best-*", "failed-step.json", ".*"],
            commit_message="A checkpoint trained with coral_lab",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        way = "log in by `hf auth login`, or mend that; the folder is as it was"
        raise HubError(one_line(f"{name} could not be published ({error}); {way}")) from error
    return str(done.commit_url)
