"""A stand-in for an SGLang server: it speaks the documented protocol, and our engine answers with the weights it got.

Only what a client of SGLang 0.5.23 needs of `/server_info`, `/update_weights_from_disk` and `/generate`.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations


@dataclass
class Server:
    """What the stand-in has, and what it saw.

    Attributes:
        model: what writes; an update of the weights replaces it. decoding: of the server's own file.
        algorithm: what it was started with. wrong: path -> what it does in place of an answer.
        asked: (path, body) of every request.
    """

    model: BlockDiffusionModel | None = None
    decoding: str = "dynamic:0.3"
    algorithm: str | None = "LowConfidence"
    version: str = "default"
    wrong: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        self.asked.append((path, body))
        if path in self.wrong:
            return self.wrong[path](self, body)
        if path == "/server_info":
            return 200, {"dllm_algorithm": self.algorithm, "version": "0.5.23"}
        if path == "/update_weights_from_disk":
            return self.update(body)
        return 200, self.generate(body)

    def update(self, body: dict[str, Any]) -> tuple[int, Any]:
        """As SGLang: an unknown folder is a 400 with a message."""
        folder = Path(body["model_path"])
        if not (folder / "config.json").is_file():
            return 400, {"success": False, "message": f"no such model {folder}", "num_paused_requests": 0}
        self.model, self.version = sdar_model(folder), body["weight_version"]
        return 200, {"success": True, "message": "Succeeded", "num_paused_requests": 0}

    def generate(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """One object a prompt, in order."""
        assert self.model is not None
        made = []
        for ids, sampling in zip(body["input_ids"], body["sampling_params"], strict=True):
            mask = max(self.model.mask_token_id, 0)
            tokens = SpecialTokens(mask, 0, tuple(sampling["stop_token_ids"]))
            settings = GenerationSettings.model_validate(
                {
                    "decoding": self.decoding,
                    "max_new_tokens": sampling["max_new_tokens"],
                    # LowConfidence takes the most probable token, whatever is asked for
                    "temperature": 0.0 if self.algorithm else sampling["temperature"],
                }
            )
            rollout = Engine(self.model, tokens).write(continuations([ids], settings, [sampling["sampling_seed"]]))
            response = rollout.input_ids[0, len(ids) : int(rollout.length[0])].tolist()
            stopped = {"type": "stop", "matched": response[-1]}
            length = {"type": "length", "length": sampling["max_new_tokens"]}
            about = {"weight_version": self.version, "finish_reason": stopped if rollout.stopped[0] else length}
            made.append({"text": "", "output_ids": response, "meta_info": about})
        return made


def sdar_model(folder: Path) -> BlockDiffusionModel:
    """The model of an SDAR folder, whose weights are Qwen3's."""
    about = json.loads((folder / "config.json").read_text())
    known = {name: value for name, value in about.items() if name not in ("auto_map", "model_type", "architectures")}
    model = Qwen3ForCausalLM(Qwen3Config(**known | {"dtype": "float32"})).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return BlockDiffusionModel(model, Geometry(about["block_size"]), about["mask_token_id"])


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server on a free port, in a thread."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            with lock, torch.random.fork_rng(devices=[]):
                status, content = server.answer(self.path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the tests read what was asked."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{made.server_address[1]}"
    try:
        yield server
    finally:
        made.shutdown()
        made.server_close()
        thread.join()
