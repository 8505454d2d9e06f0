"""A data set of somebody's on the Hugging Face hub in the place of a folder: ``data.path=hf://datasets/OWNER/NAME``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from toolkit.data.sources import CONNECT_TIMEOUT_S
from toolkit.errors import UserError, brief
from toolkit.plain_files import named_path

PREFIX = "hf://datasets/"


def path_here(path: str | Path) -> Path | None:
    """``path`` on this machine; None for a data set on the hub, whose words are checked and nothing is fetched.

    Raises UserError for other words.
    """
    if not str(path).startswith(PREFIX):
        return named_path(path)
    _parts(str(path))
    return None


def given_path(path: str | Path) -> Path:
    """What ``data.path`` names: a file or folder here, or one on the hub, downloaded into the hub's own cache.

    ``hf://datasets/OWNER/NAME[@REVISION][/FOLDER]``, the words of huggingface_hub's file system. What is in the cache
    is taken from there where the hub does not answer. Raises UserError for other words and what cannot be had.
    """
    return path_here(path) or _downloaded(str(path))


def _parts(path: str) -> tuple[str, str | None, str]:
    """Repository, revision and folder ("" for all of it). Raises UserError."""
    owner, _, rest = path.removeprefix(PREFIX).partition("/")
    name, _, folder = rest.strip("/").partition("/")
    name, _, revision = name.partition("@")
    if not owner or not name or ".." in folder.split("/"):
        raise UserError(f"data.path={path}: name a data set as {PREFIX}OWNER/NAME, with a folder of it behind that")
    return f"{owner}/{name}", revision or None, folder


@lru_cache
def _downloaded(path: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    repository, revision, folder = _parts(path)
    said = "offline (HF_HUB_OFFLINE is set), and not in its cache"
    is_offline = constants.HF_HUB_OFFLINE
    try:
        if not is_offline:  # a short probe: the client itself retries for half a minute
            HfApi().dataset_info(repository, revision=revision, timeout=CONNECT_TIMEOUT_S)
    except Exception as error:  # the client's errors share no base class across its versions
        is_offline, said = True, brief(error)
    try:
        patterns = [folder, f"{folder}/*"] if folder else None
        root = snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=patterns, local_files_only=is_offline
        )
    except Exception as error:
        said = said if is_offline else brief(error)
        raise UserError(f"data.path={path}: cannot be had from the hub: {said}") from error
    found = Path(root) / folder
    if not found.exists():
        raise UserError(f"data.path={path}: {repository} has no {folder}")
    return found
