"""Push an export to a Hugging Face hub, as one commit.

The folder is complete before anything is sent; whatever goes wrong here, it stays. Endpoint and
token are the hub's own: HF_ENDPOINT and HF_TOKEN, or the stored login.
"""

from __future__ import annotations

import logging
from pathlib import Path

import huggingface_hub
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from eigenshift.base.errors import SettingsError, StorageError
from eigenshift.exporting.cards import OUR_TAG, README_NAME

logger = logging.getLogger(__name__)

TRANSPORT_ERROR: type[Exception] = next(
    base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"
)
"""No connection; the hub's client is built on httpx or, in later versions, httpx2."""
ALWAYS_THERE = {".gitattributes", README_NAME}


def check_repository_name(name: str) -> None:
    """Refuse a name that cannot be one, before anything is written.

    Raises:
        SettingsError: It is not owner/name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SettingsError(_explain_name(name)) from error
    if name.count("/") != 1:
        raise SettingsError(_explain_name(name))


def push_export(folder: Path, name: str, *, is_private: bool = True) -> str:
    """Upload an export into a new or empty repository, or over an earlier export of ours.

    Args:
        folder: The export; its card is checked by the hub first.
        name: owner/name.
        is_private: Of a repository that is made here.

    Returns:
        Its URL.

    Raises:
        SettingsError: The repository holds something else, or the hub refuses the card.
        StorageError: The hub cannot be reached, or refuses.
    """
    api = huggingface_hub.HfApi(endpoint=constants.ENDPOINT)
    try:
        _check_card(folder, name)  # before a repository is made
        url = api.create_repo(name, private=is_private, exist_ok=True)
        _check_content(api, name)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Export of EigenShift",
            delete_patterns="*",
        )
    except (TRANSPORT_ERROR, OSError, ValueError) as error:
        raise StorageError(
            f"{name} on {constants.ENDPOINT}: expected to push the export, found: "
            f"{_describe(error)}. Check the name, HF_TOKEN (it needs write access), HF_HUB_OFFLINE "
            f"and the network. The export is complete in {folder}."
        ) from error
    logger.info("export pushed: repository=%s private=%s", name, is_private)
    return str(url)


def _check_card(folder: Path, name: str) -> None:
    card = ModelCard.load(folder / README_NAME)
    try:
        card.validate()
    except ValueError as error:
        raise SettingsError(
            f"{name}: expected a model card that the hub accepts, found: {error}. The export is in "
            f"{folder}; edit its {README_NAME} and upload it with `hf upload`."
        ) from error


def _check_content(api: huggingface_hub.HfApi, name: str) -> None:
    """An upload replaces all files, so they must be none or ours."""
    information = api.model_info(name)
    files = {item.rfilename for item in information.siblings or []}
    if files - ALWAYS_THERE and OUR_TAG not in (information.tags or []):
        raise SettingsError(
            f"{name}: expected a new or empty repository, or an earlier export (tag {OUR_TAG}), "
            f"found {len(files)} other files. Nothing was pushed; choose another name."
        )


def _describe(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return type(error).__name__ if status is None else f"{type(error).__name__} ({status})"


def _explain_name(name: str) -> str:
    return f"--push: expected owner/name, found {name!r}. Give a repository of your own."
