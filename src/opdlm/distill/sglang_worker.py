"""SGLang as the writer of rollouts: it gets the student's weights, then writes the text.

What it cannot give is said here and in the settings (`DistillSettings`), so that no run is taken for another:

- **No commit steps.** The texts are the student's own, but not the states that it visited. Trained on are random masks
  in them (method `onpolicy_text`); of a lossless conversion, windows at all places (`anchors` all).
- **No temperature** with masks: its LowConfidence takes the most probable token. The AR server of a lossless conversion
  draws as asked.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.checkpoints.export_sdar import check_sdar, export_sdar
from opdlm.config import DistillSettings, DynamicDecoding
from opdlm.distill.rollout import Worker, Written, given
from opdlm.distill.sglang_client import SGLangClient
from opdlm.errors import RolloutServerError
from opdlm.models import adapter
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.request import Request

Push = Callable[[Path], object]
"""Writes the student, as it is now, as a new folder that the server can load."""


def check_rollout_server(
    settings: DistillSettings, student: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Whether the server that the settings name, if any, can write for this conversion.

    Raises:
        RolloutServerError: it cannot, or is not there. Otherwise as `check_sdar`: it cannot load this student.
    """
    if not settings.rollout_server:
        return
    if settings.method != "lossless":
        check_sdar(student, tokenizer)
    client = _client(settings)
    algorithm = client.server_info().get("dllm_algorithm")
    if settings.method == "lossless" and algorithm is not None:
        raise RolloutServerError(
            f"{client.url} decodes with masks ({algorithm}), and a lossless conversion learns from the AR model's own "
            "text; start it with the AR model, without --dllm-algorithm"
        )
    if settings.method != "lossless" and algorithm != "LowConfidence":
        raise RolloutServerError(
            f"{client.url} has the diffusion algorithm {algorithm}, and LowConfidence is due; start it with "
            f"--dllm-algorithm LowConfidence on the folder that opdlm export MODEL --format sdar --block-size "
            f"{settings.block_size} makes"
        )


def worker_of(
    settings: DistillSettings,
    student: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: SpecialTokens,
    place: Path,
) -> Worker | None:
    """Who writes the rollouts, where that is not this process. `place`: as in SGLangWorker."""
    if not settings.rollout_server:
        return None
    push = None if settings.method == "lossless" else partial(_push, settings, student, tokenizer)
    return SGLangWorker(
        client=_client(settings),
        tokens=tokens,
        block_size=settings.block_size,
        vocabulary=student.head_parameters()[0].shape[0],
        rows=settings.rollout_batch,
        push=push,
        place=place,
    )


def _client(settings: DistillSettings) -> SGLangClient:
    return SGLangClient(settings.rollout_server, settings.rollout_timeout_s)


def _push(
    settings: DistillSettings, student: BlockDiffusionModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """The student as an SDAR folder, an adapter merged; in float32: the server rounds as it was told to."""
    assert isinstance(settings.rollout_decoding, DynamicDecoding)
    model = student
    if settings.lora_rank is not None:
        model = BlockDiffusionModel(adapter.merged(student.model), student.geometry, student.mask_token_id)
    export_sdar(model, tokenizer, folder, dtype=torch.float32, threshold=settings.rollout_decoding.threshold)


@dataclass
class SGLangWorker:
    """Writes the student's texts on a server.

    Attributes:
        client: the server. tokens, block_size, vocabulary: the student's. rows: in one request.
        push: how the student is written for the server; None: the server has the weights that are wanted, for good.
        place: where `push` writes: a folder that both machines see by the same path.
    """

    client: SGLangClient
    tokens: SpecialTokens
    block_size: int
    vocabulary: int
    rows: int
    push: Push | None
    place: Path
    _run: str = field(default_factory=lambda: uuid4().hex[:8])
    _pushed: int = 0

    def write(self, requests: Sequence[Request], device: torch.device) -> Written:
        """A text for each request, written with the student's present weights; commit steps are all 0: not known.

        Raises RolloutServerError: nothing is written then, and what the run has is as it was.
        """
        version = self._update()
        texts: list[list[int]] = []
        for first in range(0, len(requests), self.rows):
            part = requests[first : first + self.rows]
            ids = [request.ids for request in part]
            texts += self.client.generate(ids, [self._parameters(request) for request in part], version)
        self._check_tokens(texts)
        prompts = [request.ids for request in requests]
        cap = max(request.end - request.first for request in requests)
        return Written(given(prompts, texts, self.tokens, self.block_size, cap).to(device), query_tokens=0)

    def _update(self) -> str | None:
        """Gives the server the student as it is now; returns the version that its answers must bear."""
        if self.push is None:
            return None
        self._pushed += 1
        version = f"{self._run}-{self._pushed}"
        folder = self.place / version
        try:
            self.push(folder)
            self.client.update_weights(folder, version)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return version

    def _parameters(self, request: Request) -> dict[str, Any]:
        """`sampling_params`, neutral ones too: a model's generation config may have others.

        The seed counts where the server runs with --enable-deterministic-inference.
        """
        return {
            "max_new_tokens": request.end - request.first,
            "temperature": request.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(self.tokens.stop_token_ids),
            "sampling_seed": request.seed % 2**31,
        }

    def _check_tokens(self, texts: Sequence[Sequence[int]]) -> None:
        strange = [t for text in texts for t in text if not 0 <= t < self.vocabulary]
        if self.push is not None:
            strange += [t for text in texts for t in text if t == self.tokens.mask_token_id]
        if strange:
            raise RolloutServerError(
                f"the rollout server wrote token {strange[0]}, which this model does not write; is it another model's? "
                "Start it on this model, then go on with --resume"
            )
