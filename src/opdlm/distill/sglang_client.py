"""The part of SGLang's HTTP protocol that a rollout worker needs, over the standard library.

As in SGLang 0.5.23 (`srt/entrypoints/http_server.py`, `srt/managers/io_struct.py`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from time import sleep
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from opdlm.errors import RolloutServerError

_RETRIED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True)
class SGLangClient:
    """One server.

    Attributes:
        url: such as http://localhost:30000. timeout_s: for each answer.
        waits_s: before each further try, where the server cannot be reached or says that it is busy.
    """

    url: str
    timeout_s: float
    waits_s: tuple[float, ...] = (1.0, 5.0, 15.0)

    def server_info(self) -> dict[str, Any]:
        """Its settings (`dllm_algorithm`, `model_path`, ...), by GET /server_info."""
        return _object(self._ask("/server_info"), "/server_info")

    def update_weights(self, folder: Path, version: str) -> None:
        """Loads the weights in `folder` by POST /update_weights_from_disk, which waits for requests under way and then
        empties the cache. The server must see the folder by the same path."""
        body = {"model_path": str(folder.resolve()), "weight_version": version, "flush_cache": True}
        answer = _object(self._ask("/update_weights_from_disk", body), "/update_weights_from_disk")
        if answer.get("success") is not True:
            raise RolloutServerError(_not_loaded(folder, str(answer.get("message"))))

    def generate(
        self, prompts: Sequence[Sequence[int]], parameters: Sequence[dict[str, Any]], version: str | None
    ) -> list[list[int]]:
        """Response ids of each prompt, its stop token included, by POST /generate.

        Args:
            parameters: `sampling_params`, one for each prompt.
            version: of the weights that must have written them; None: whatever the server has.

        Raises RolloutServerError: also for an answer that is none, or by other weights.
        """
        body = {"input_ids": [list(prompt) for prompt in prompts], "sampling_params": list(parameters), "stream": False}
        answer = self._ask("/generate", body)
        if not isinstance(answer, list) or len(answer) != len(prompts):
            raise RolloutServerError(_no_answer("/generate", answer, f"a list of {len(prompts)} responses"))
        return [_response(one, version) for one in answer]

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer."""
        text = self._asked(path, None if body is None else json.dumps(body).encode())
        try:
            return json.loads(text)
        except ValueError as error:
            raise RolloutServerError(_no_answer(path, text, "JSON")) from error

    def _asked(self, path: str, data: bytes | None) -> bytes:
        """The body of an answer. A server that cannot be reached or is busy is asked again; a slow one is not."""
        request = Request(self.url.rstrip("/") + path, data, {"Content-Type": "application/json"})
        waits = iter(self.waits_s)
        while True:
            try:
                with build_opener(ProxyHandler({})).open(request, timeout=self.timeout_s) as answer:
                    return answer.read()
            except HTTPError as error:
                wait = next(waits, None) if error.code in _RETRIED else None
                if wait is None:
                    raise RolloutServerError(
                        f"{self.url}{path} answers {error.code}: {_message(error.read())}; mend that and go on with "
                        "--resume"
                    ) from error
            except (URLError, ConnectionError, HTTPException, TimeoutError) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, TimeoutError):
                    raise RolloutServerError(self._slow(path)) from error
                if (wait := next(waits, None)) is None:
                    raise RolloutServerError(
                        f"the rollout server {self.url} cannot be reached ({reason}); start it, then go on with "
                        "--resume"
                    ) from error
            sleep(wait)

    def _slow(self, path: str) -> str:
        return (
            f"{self.url}{path} gave no answer in {self.timeout_s:g} s; raise --rollout-timeout-s or lower "
            "--rollout-batch, then go on with --resume"
        )


def _response(answer: Any, version: str | None) -> list[int]:
    """The ids of one response."""
    about = answer.get("meta_info") if isinstance(answer, dict) else None
    ids = answer.get("output_ids") if isinstance(answer, dict) else None
    sound = isinstance(ids, list) and ids and all(isinstance(token, int) for token in ids)
    if not isinstance(about, dict) or not sound:
        raise RolloutServerError(_no_answer("/generate", answer, "output_ids and meta_info"))
    assert isinstance(ids, list)
    if version is not None and about.get("weight_version") != version:
        raise RolloutServerError(
            f"the rollout server wrote with the weights {about.get('weight_version')!r}, not with those just sent "
            f"({version!r}): it was started again, or someone else updates it; give this run a server of its own, then "
            "go on with --resume"
        )
    end = about.get("finish_reason")
    if isinstance(end, dict) and end.get("type") == "abort":
        raise RolloutServerError(
            f"the rollout server broke a response off ({end.get('message')}); see its log, then go on with --resume"
        )
    return ids


def _object(answer: Any, path: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise RolloutServerError(_no_answer(path, answer, "an object"))
    return answer


def _no_answer(path: str, answer: Any, due: str) -> str:
    return (
        f"the rollout server answers {path} with {str(answer)[:80]!r}, where {due} is due; is it SGLang? Name another "
        "--rollout-server and go on with --resume"
    )


def _not_loaded(folder: Path, reason: str) -> str:
    return (
        f"the rollout server did not load the weights in {folder} ({reason}); it must see that very path: put --output "
        "on a file system that both have, then go on with --resume"
    )


def _message(body: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        content = json.loads(body)
    except ValueError:
        content = body.decode(errors="replace")
    if isinstance(content, dict):
        content = content.get("message") or content.get("error") or content
    if isinstance(content, dict):
        content = content.get("message", content)
    return " ".join(str(content).split())[:300]
