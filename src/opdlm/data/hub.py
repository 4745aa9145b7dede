"""What the Hugging Face hub says of a name: asked once, before a library asks again and again."""

from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # httpx's or httpx2's, by the version of the hub's client  # pyright: ignore[reportPrivateImportUsage]
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

Answer = Literal["there", "unknown", "unreachable", "off"]
_PATIENCE_S = 5.0


def ask_hub(name: str, kind: Literal["model", "dataset"]) -> Answer:
    """Whether the hub has it. The client's own downloads repeat a failed question for half a minute.

    "unknown": no such name, or none that may be seen. "unreachable": no answer. "off": HF_HUB_OFFLINE is set.
    """
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_PATIENCE_S)
    except (RepositoryNotFoundError, HFValidationError):
        return "unknown"
    except OfflineModeIsEnabled:
        return "off"
    except (HTTPError, OSError):
        return "unreachable"
    return "there"
