"""Uploading an exported classifier to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from shiftproof.errors import InputError


def push_to_hub(directory: str | Path, repository: str, *, private: bool = False) -> str:
    """Uploads an exported directory to the model repository ``ORG/NAME``, and returns the address of the commit.

    The repository is created if it does not exist, as a private one if ``private`` is set. huggingface_hub finds the
    token and the address of the hub (``HF_TOKEN``, ``HF_ENDPOINT``). Raises an InputError if the name is not one of a
    repository, or if the hub cannot be reached or refuses the upload.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if repository.count("/") != 1:
        raise InputError(f"`push_to_hub` is {repository!r}; it must look like ORG/NAME.")
    network_error = HfHubHTTPError.__mro__[1]  # that of the HTTP library which this version of huggingface_hub uses
    api = HfApi(library_name="shiftproof")
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(folder_path=directory, repo_id=name, commit_message="Add a classifier and its card")
    except HFValidationError as error:
        raise InputError(f"{repository!r} is no name of a repository: {error}") from error
    except (OSError, RuntimeError, ValueError, network_error) as error:
        raise InputError(
            f"{directory} cannot be uploaded to {repository!r} ({str(error).strip()}). Check the name, the network and "
            "the token (`hf auth login`, or HF_TOKEN). The exported directory is complete, so it can be uploaded later."
        ) from error
    return str(commit.commit_url)
