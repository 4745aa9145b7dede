"""A finished model on the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # of its HTTP client, whichever that is  # pyright: ignore[reportPrivateImportUsage]
)
from huggingface_hub.utils import validate_repo_id

from opdlm.checkpoints.load import is_checkpoint
from opdlm.errors import CheckpointError, HubError, UsageError
from opdlm.records.checkpoints import OF_TRAINING


def check_hub(name: str, private: bool) -> None:
    """Makes the repository USER/NAME if it is not there: before a training, so that the push at its end can succeed.

    Raises:
        UsageError: the name is none. HubError: no token, no right to write there, or no network.
    """
    if name.count("/") != 1:
        raise UsageError(f"{name!r} is no repository of the hub; write USER/NAME")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"{name!r} is no repository of the hub ({error}); write USER/NAME") from error
    with _explained(f"{name} cannot be written", "log in with `hf auth login`, and check the name"):
        HfApi().create_repo(name, private=private, exist_ok=True)


def push(folder: str | Path, name: str, private: bool = False) -> str:
    """Uploads the model in `folder`, or that of the run `folder`, as USER/NAME. Returns its address.

    Raises:
        CheckpointError: the folder holds no converted model. UsageError, HubError: as in `check_hub`.
    """
    chosen = Path(folder) / "model" if is_checkpoint(Path(folder) / "model") else Path(folder)
    if not is_checkpoint(chosen):
        raise CheckpointError(f"{folder} holds no converted model; give the folder of a finished run or of its model")
    check_hub(name, private)
    again = f"opdlm push {chosen} {name}{' --private' if private else ''}"
    with _explained(f"the upload failed; nothing is lost, the model is {chosen}", f"repeat it with: {again}"):
        HfApi().upload_folder(
            repo_id=name, folder_path=chosen, commit_message="Converted with opdlm", ignore_patterns=list(OF_TRAINING)
        )
    return f"https://huggingface.co/{name}"


@contextmanager
def _explained(what: str, fix: str) -> Iterator[None]:
    """HubError in place of what the hub's client raises: no token, an answer of the hub, or no network."""
    try:
        yield
    except (HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if type(error).__name__ == "ConnectError":  # of its HTTP client, whichever that is
            fix = "there is no way to the hub; connect to the network, then try again"
        raise HubError(f"{what} ({reason}); {fix}") from error
