"""Models by their name on the Hugging Face hub: ORG/NAME, or ORG/NAME@revision. HF_ENDPOINT names another hub."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any, Optional

from gpt_neo import storage
from gpt_neo.checkpoint.hf_config import refuse_by_config
from gpt_neo.checkpoint.remote import source_folder
from gpt_neo.config.loader import HUB_NAME
from gpt_neo.errors import CheckpointError, reason_of

# What a conversion reads: what is small, and looked at first, and weights. Pickled ones (.bin) are left where they are.
SMALL = ("*.json", "merges.txt", "*.jinja")
WEIGHTS = ("*.safetensors",)


def is_hub_name(source: str) -> bool:
    """Whether this can only be the name of a model on the hub."""
    return bool(HUB_NAME.fullmatch(source)) and not os.path.exists(source) and not storage.is_remote(source)


def address() -> str:
    """The hub that is asked."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


@contextlib.contextmanager
def model_folder_of(source: str) -> Iterator[str]:
    """A Hugging Face folder as a local one: itself, a copy of one in a bucket, or of one on the hub (in its cache).

    Raises:
      CheckpointError: there is no such folder or model, or no way to it.
    """
    if is_hub_name(source):
        yield hub_snapshot(source)
        return
    with source_folder(source) as folder:
        yield folder


def hub_snapshot(source: str) -> str:
    """The local copy of a model on the hub, made when it is not there.

    Raises:
      CheckpointError: as `small_snapshot`, or the hub has no safetensors of it.
    """
    small_snapshot(source)
    folder = download(source, (*SMALL, *WEIGHTS))
    if not any(name.endswith(".safetensors") for name in os.listdir(folder)):
        raise CheckpointError(
            f"{source!r}: the hub has no safetensors of it; pickled weights are not fetched. Get the folder by other "
            "means and give its path"
        )
    return folder


def small_snapshot(source: str) -> str:
    """The local copy of a model on the hub without its weights: config, tokenizer and chat template.

    Raises:
      CheckpointError: the hub has no such model or revision, cannot be reached, or its model is none of ours, of which
        gigabytes would come in vain.
    """
    folder = download(source, SMALL)
    try:
        refuse_by_config(folder)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(folder, source)) from error
    return folder


def download(source: str, patterns: tuple[str, ...]) -> str:
    """The files of a model on the hub that match patterns, in the hub's cache. Bars are shown of weights alone.

    Raises:
      CheckpointError: they cannot be had, or the cache cannot be written.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import tqdm

    class NoBar(tqdm):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "disable": True})

    found = HUB_NAME.fullmatch(source)
    assert found is not None
    name, revision = found["name"], found["revision"]
    if constants.HF_HUB_CACHE.startswith("~"):
        raise CheckpointError(
            f"{source!r}: no such folder here, and no home folder for a copy from {address()} (HOME is not set); "
            "HF_HOME names a folder"
        )
    bar = NoBar if patterns == SMALL else None
    late = not answers(name, revision)
    how: dict = {"allow_patterns": list(patterns), "tqdm_class": bar, "local_files_only": late}
    try:
        return str(snapshot_download(name, revision=revision, **how))
    except Exception as error:  # whatever its HTTP client raises
        raise CheckpointError(f"{source!r}: no such folder here, and {refusal(error, name, revision, late)}") from error


def refusal(error: Exception, name: str, revision: Optional[str], late: bool) -> str:
    """Why there is no copy of a model on the hub.

    Args:
      late: the hub gave no answer in time, and the cache alone was asked.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hub = address()
    if isinstance(error, GatedRepoError):
        return f"{hub}/{name} is open to those alone who have asked for it there; HF_TOKEN says who you are"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} on {hub} has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return f"no such model on {hub}, or it is private (HF_TOKEN opens it)"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):  # of the cache
        place = error.filename or constants.HF_HUB_CACHE
        return f"a copy from {hub} cannot be kept: {place}: {reason_of(error)}; HF_HOME names another folder"
    reason = reason_of(error).splitlines()[0]
    if late:
        reason = f"no answer in {constants.HF_HUB_ETAG_TIMEOUT} s (HF_HUB_ETAG_TIMEOUT), and no whole copy in the cache"
    elif status_of(error) == 401:
        reason += "; HF_TOKEN, or the token that is kept, is none it knows"
    return f"it cannot be had from {hub}: {reason}"


@functools.cache
def answers(name: str, revision: Optional[str]) -> bool:
    """Whether the hub answers in time, whatever it says; its client asks without a limit of time.

    A firewall that drops what it does not let through would be minutes of silence.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return True  # it is not asked
    try:
        HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of httpx, or of requests in older clients
        return not any("Timeout" in kind.__name__ for kind in type(error).__mro__)
    return True


def status_of(error: BaseException) -> Optional[int]:
    """HTTP's status of what a hub refused."""
    return getattr(getattr(error, "response", None), "status_code", None)


def push_folder(folder: str, name: str) -> str:
    """Upload a folder as a model of the hub, which is made if it is not there.

    Returns:
      its address.

    Raises:
      CheckpointError: the hub cannot be reached, or does not let us (HF_TOKEN).
    """
    from huggingface_hub import HfApi

    hub = address()
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by gpt-neo"))
    except Exception as error:  # whatever its HTTP client raises
        raise CheckpointError(
            f"--push {name}: {hub} does not take it: {reason_of(error).splitlines()[0]}; {folder} is there all the same"
        ) from error
