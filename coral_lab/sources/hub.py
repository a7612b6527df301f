"""Downloads from the Hugging Face hub, with one clear error for whatever goes wrong."""

import errno
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from coral_lab.errors import HubError
from coral_lab.sources.border import brief


def download(
    name: str,
    files: Sequence[str],
    *,
    kind: str = "model",
    revision: str | None = None,
    offline: bool = False,
) -> Path:
    """The local folder with those files (patterns) of the repository; what is there already is not fetched
    again.

    A download that was cut short goes on where it stopped; `offline` makes no connection. Each connection and
    each read has huggingface_hub's limit (10 s; HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT), a download as
    a whole has none: checkpoints are gigabytes. `kind` is "model" or "dataset". Raises HubError.
    """
    at = brief(name) + (f" at revision {brief(revision)}" if revision else "")
    try:
        return Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, local_files_only=offline, allow_patterns=list(files)
            )
        )
    except RevisionNotFoundError as error:
        raise HubError(
            f"{at} does not exist on the hub; name one of its branches, tags or commits"
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{at} is not on the hub, or private; check it, or log in with `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        way = (
            "load it once without offline"
            if offline
            else "check the network, or give the path of a local copy"
        )
        raise HubError(f"{at} is neither downloaded nor reachable; {way}") from error
    except HFValidationError as error:
        raise HubError(f"{at} is no hub id ({error}); give owner/name") from error
    except OSError as error:  # HfHubHTTPError and requests' errors are OSErrors too
        if error.errno == errno.ENOSPC:
            raise HubError(
                f"no disk space left for {at}; free some, or set HF_HOME to another disk"
            ) from error
        if isinstance(error, HfHubHTTPError):
            raise HubError(f"the hub refused {at} ({error}); try later or give a local folder") from error
        raise HubError(f"{at} could not be downloaded ({error}); check the network and try again") from error
