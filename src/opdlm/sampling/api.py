"""What users call: `load` a converted model, `generate` text or token ids, watch the drafts.

Names follow the text-diffusion API of transformers (`tokens_per_forward`, a streamer with `put_draft`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase

from opdlm.checkpoints.load import finished, generation_settings, load_ar_model, load_checkpoint
from opdlm.checkpoints.trust import remote_code
from opdlm.config import DynamicDecoding, GenerationSettings, SequentialDecoding, settings_from
from opdlm.core.layout import AUTOREGRESSIVE
from opdlm.core.types import Rollout
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.devices import pick_device, pick_dtype
from opdlm.models.gaps import GapText
from opdlm.models.packed import pack_where_it_pays
from opdlm.models.tokens import SpecialTokens, decode_inside, encode_prompt, special_tokens
from opdlm.records.trajectory import Trajectory, trajectories
from opdlm.sampling.denoising import Step
from opdlm.sampling.engine import Completion, Engine, Event
from opdlm.sampling.grammar import Grammar, Grammars
from opdlm.sampling.request import Request, check_length
from opdlm.sampling.requests import continuations, fillings
from opdlm.sampling.state import stack
from opdlm.sampling.token_rows import only_length, token_rows
from opdlm.sampling.ways import way_of


class DraftStreamer(Protocol):
    """Receives a row's text while it is written (one prompt at a time, as streamers of transformers do)."""

    def put_draft(self, ids: torch.Tensor) -> None:
        """[L] response ids as they are now, the mask token where nothing is committed; a lossless model: verified."""
        ...

    def put(self, ids: torch.Tensor) -> None:
        """[L] final response ids."""
        ...

    def end(self) -> None:
        """The response is complete."""
        ...


@runtime_checkable
class VerifiedStreamer(DraftStreamer, Protocol):
    """Sees a lossless model's drafts as well."""

    def put_verified(self, ids: torch.Tensor, drafts: torch.Tensor) -> None:
        """In place of `put_draft`: [L] verified response ids, [d] drafts behind them that the next forward checks."""
        ...


@dataclass(frozen=True)
class GenerationOutput:
    """Attributes:
    sequences: [B, T] int64, prompt and response, padded on the right.
    tokens_per_forward: tokens written divided by model forwards, over all rows; a pass over prompts alone is none.
    rollout: the record with lengths. block_size: tokens of a block.
    """

    sequences: torch.Tensor
    tokens_per_forward: float
    rollout: Rollout
    block_size: int

    @property
    def commit_steps(self) -> torch.Tensor:
        """int16, column = position, as in `rollout`: the denoising step that committed each token; -1 given."""
        return self.rollout.commit_step

    @property
    def confidences(self) -> torch.Tensor:
        """float32, likewise: the model's own probability for each token when it was committed; 0 for given ones."""
        assert self.rollout.confidence is not None
        return self.rollout.confidence

    def trajectories(self) -> list[Trajectory]:
        """Each row as a record of its own: written tokens, their positions, commit steps and confidences."""
        return trajectories(self.rollout, self.block_size)


@dataclass(frozen=True)
class Answer:
    """One response. Attributes: text: without special tokens. tokens, forwards: counts. stopped: else it is cut off."""

    text: str
    tokens: int
    forwards: int
    stopped: bool

    def as_fields(self) -> dict[str, str | int]:
        """What a file has of it."""
        reason = "stop" if self.stopped else "length"
        return {"response": self.text, "tokens": self.tokens, "forwards": self.forwards, "finish_reason": reason}


class DiffusionLM:
    """A converted model with its tokenizer: `generate(input_ids)`, `write("text")`, `infill("text [[MASK:4]]")`."""

    def __init__(
        self,
        model: BlockDiffusionModel,
        tokenizer: PreTrainedTokenizerBase,
        defaults: GenerationSettings,
        tokens: SpecialTokens | None = None,
    ) -> None:
        """`tokens`: default: as the tokenizer and the model's generation config say."""
        self.model, self.tokenizer, self.defaults = model, tokenizer, defaults
        self.tokens = tokens or special_tokens(model.model, tokenizer, needs_mask=model.mask_token_id != NO_MASK)

    def generate(
        self,
        input_ids: torch.Tensor | Sequence[Sequence[int]],
        attention_mask: torch.Tensor | None = None,
        streamer: DraftStreamer | None = None,
        batch_size: int = 32,
        observer: Callable[[Step], None] | None = None,
        **settings: Any,
    ) -> GenerationOutput:
        """Continue each row.

        Args:
            input_ids: [B, P] int64 (with `attention_mask` where rows are padded, on either side), or lists of ids.
            streamer: for a single row: sees every draft.
            batch_size: rows decoded at once.
            observer: is told of every denoising step; of a text that drafts, the streamer sees what there is to see.
            settings: fields of GenerationSettings, in place of the model's defaults.
        """
        prompts, chosen = token_rows(input_ids, attention_mask), self.settings(settings)
        requests = self.requests(prompts, chosen, watched=streamer is not None)
        engine = self.engine(batch_size if streamer is None else 1, observer)
        rollout = engine.write(requests) if streamer is None else self._shown(engine, requests, streamer)
        lengths = rollout.length.tolist()
        texts = [ids[:length] for ids, length in zip(rollout.input_ids.tolist(), lengths, strict=True)]
        if streamer is not None:
            streamer.put(rollout.input_ids[0, len(prompts[0]) : lengths[0]])
            streamer.end()
        return self._output(rollout, texts, int((rollout.length - rollout.prompt_length).sum()))

    def stream(self, input_ids: torch.Tensor | Sequence[Sequence[int]], **settings: Any) -> Iterator[torch.Tensor]:
        """The response to one row [1, P] as it is after each step: [L] ids, mask tokens where nothing is known yet.

        Of a lossless model: what is verified.
        """
        prompts, chosen = token_rows(input_ids, None), self.settings(settings)
        begin = only_length(prompts)
        request = self.requests(prompts, chosen, watched=True)[0]
        events = self._watched(self.engine(1), request)
        next(events)  # the first draft: nothing is known yet
        for event in events:
            if isinstance(event, Completion):
                yield event.rollout.input_ids[0, begin : int(event.rollout.length[0])].clone()
            else:
                known = event.known if self.drafts(str(request.decoding["kind"])) else None
                yield event.input_ids[begin:known].to(self.model.device)

    def fill(
        self,
        input_ids: Sequence[Sequence[int]],
        streamer: DraftStreamer | None = None,
        batch_size: int = 32,
        observer: Callable[[Step], None] | None = None,
        **settings: Any,
    ) -> GenerationOutput:
        """Replace every mask token in each row of ids; the rest stays as it is.

        What stands behind a gap is seen as far as its block reaches: the model was trained so. Neither `max_new_tokens`
        nor stop tokens apply. Settings: see `filling_settings`.
        """
        rows, mask = token_rows(input_ids, None), self.tokens.mask_token_id
        requests = self.fillings(rows, self.filling_settings(settings), watched=streamer is not None)
        engine = self.engine(batch_size if streamer is None else 1, observer)
        rollout = engine.write(requests) if streamer is None else self._shown(engine, requests, streamer, rows[0])
        written = zip(rollout.input_ids.tolist(), rollout.length.tolist(), rows, strict=True)
        texts = [[*ids[:length], *row[length:]] for ids, length, row in written]
        if streamer is not None:
            streamer.put(torch.tensor(texts[0]))
            streamer.end()
        return self._output(rollout, texts, sum(row.count(mask) for row in rows))

    def fillings(
        self, rows: Sequence[Sequence[int]], settings: GenerationSettings, watched: bool = False
    ) -> list[Request]:
        """A request for each of the `rows` of ids, whose mask tokens are to be replaced. UsageError: see `fill`."""
        mask, geometry = self.tokens.mask_token_id, self.model.geometry
        if not all(mask in row for row in rows):
            raise UsageError("a text has no gap to fill; write [[MASK:12]] where twelve tokens are missing")
        if geometry.prediction == "shifted" and any(row[0] == mask for row in rows):
            raise UsageError(
                "this model predicts a token from the one before it; begin the text with a token, not a gap"
            )
        return fillings(rows, settings, mask, geometry.block_size, watched=watched)

    def write(self, prompt: str | list[dict[str, str]], **settings: Any) -> str:
        """The response to one prompt (or conversation), as text."""
        output = self.generate([encode_prompt(self.tokenizer, prompt)], **settings)
        return self.decode(output)[0]

    def infill(self, text: str, **settings: Any) -> str:
        """`text` with each gap filled: `[[MASK:12]]` stands for twelve tokens. What stands around them comes back as it
        is, character for character. See `fill`."""
        gaps = self.gaps(text)
        return gaps.filled(self.fill([gaps.ids], **settings).sequences[0].tolist())

    def gaps(self, text: str) -> GapText:
        """`text` as ids for `fill`, and what makes text of them again. ContextLengthError if the gaps are too long."""
        if self.model.mask_token_id == NO_MASK:
            raise UsageError("this model writes from left to right and fills no gaps; convert one without --lossless")
        return GapText(self.tokenizer, text, self.tokens.mask_token_id, self.model.max_length)

    def answers(
        self, prompts: Sequence[Sequence[int]], batch_size: int = 32, first: int = 0, **settings: Any
    ) -> Iterator[tuple[int, Answer]]:
        """(index, response) of each prompt of token ids, as they finish; prompt i draws from seed + `first` + i."""
        chosen = self.settings(settings)
        seeds = range(chosen.seed + first, chosen.seed + first + len(prompts))
        for index, row in self.engine(batch_size).finished(self.requests(prompts, chosen, seeds)):
            begin, end = int(row.prompt_length), int(row.length)
            text = self.tokenizer.decode(row.input_ids[0, begin:end].tolist(), skip_special_tokens=True)
            yield index, Answer(str(text), end - begin, int(row.forwards), bool(row.stopped))

    def token_text(self, token_id: int) -> str:
        """One token as it stands in the middle of a text."""
        return decode_inside(self.tokenizer, self.tokens.mask_token_id, [token_id])

    def decode(self, output: GenerationOutput) -> list[str]:
        """The responses as text, without special tokens."""
        r = output.rollout
        ends = zip(r.prompt_length.tolist(), r.length.tolist(), strict=True)
        ids = [r.input_ids[i, begin:end].tolist() for i, (begin, end) in enumerate(ends)]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def drafts(self, kind: str) -> bool:
        """Whether a decoding of this kind writes by drafts that are checked, not by denoising steps."""
        return way_of(self.model, kind) != "denoised"

    def settings(self, given: Mapping[str, Any]) -> GenerationSettings:
        """The model's defaults, with what is `given` in their place. ConfigError for what cannot be."""
        return settings_from(GenerationSettings, {**self.defaults.model_dump(), **given})

    def filling_settings(self, given: Mapping[str, Any]) -> GenerationSettings:
        """As `settings`, for gaps: where the model's own decoding is `checked`, which fills none, gaps are filled by
        `dynamic`, unless `given` has another."""
        usual = {"decoding": DynamicDecoding()} if self.defaults.decoding.kind == "checked" else {}
        return self.settings({**usual, **given})

    def written(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, batch_size: int = 32) -> Rollout:
        """Responses to prompts of token ids, with these settings and none of the model's own."""
        return self.engine(batch_size).write(self.requests(prompts, settings))

    def finished(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, batch_size: int = 32
    ) -> Iterator[tuple[int, Rollout]]:
        """As `written`, one by one: (index of the prompt, rollout of one row) of each as it is finished."""
        return self.engine(batch_size).finished(self.requests(prompts, settings))

    def requests(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        seeds: Sequence[int] | None = None,
        watched: bool = False,
        alternatives: int = 0,
    ) -> list[Request]:
        """As `continuations`, for an `Engine` of this model; the settings' grammar is compiled.

        Raises:
            UsageError: a schema, regular expression or grammar that is not valid, or says what is not supported.
            MissingExtraError: there is one, and llguidance is not installed.
        """
        return continuations(prompts, settings, seeds, watched, alternatives, self._grammar(settings))

    def _grammar(self, settings: GenerationSettings) -> Grammar | None:
        return None if settings.constraint is None else self._grammars.of(settings)

    @cached_property
    def _grammars(self) -> Grammars:
        rows = self.model.head_parameters()[0].shape[0]
        return Grammars(self.tokenizer, rows, self.tokens.stop_token_ids)

    def engine(self, batch_size: int, observer: Callable[[Step], None] | None = None) -> Engine:
        """One that decodes as many rows at once."""
        return Engine(self.model, self.tokens, batch_size, self.tokenizer, observer)

    def _watched(self, engine: Engine, request: Request) -> Iterator[Event]:
        """All events of the only text."""
        engine.add(request)
        while not engine.idle:
            yield from engine.step()

    def _shown(
        self, engine: Engine, requests: Sequence[Request], streamer: DraftStreamer, text: Sequence[int] = ()
    ) -> Rollout:
        """The only response; the streamer sees its drafts, each with what is given of `text` behind it."""
        only_length([request.ids for request in requests])
        begin, rollouts = 0 if text else requests[0].first, []
        for event in self._watched(engine, requests[0]):
            if isinstance(event, Completion):
                rollouts.append(event.rollout)
                continue
            if self.drafts(str(requests[0].decoding["kind"])):
                verified, drafts = event.input_ids[begin : event.known], event.input_ids[event.known :]
                if isinstance(streamer, VerifiedStreamer):
                    streamer.put_verified(verified, drafts)
                else:
                    streamer.put_draft(verified)
                continue
            known = torch.tensor(text[len(event.input_ids) :], dtype=torch.int64, device=event.input_ids.device)
            streamer.put_draft(torch.cat([event.input_ids[begin:], known]))
        return stack(rollouts, self.tokens.pad_token_id)

    def _output(self, rollout: Rollout, texts: list[list[int]], tokens: int) -> GenerationOutput:
        width, pad, size = max(map(len, texts)), self.tokens.pad_token_id, self.model.geometry.block_size
        sequences = torch.tensor([ids + [pad] * (width - len(ids)) for ids in texts], device=rollout.length.device)
        return GenerationOutput(sequences, tokens / max(1, int(rollout.forwards.sum())), rollout, size)


def load(
    path: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    compile: bool = False,
    pack: bool = False,
    trust_remote_code: bool = False,
) -> DiffusionLM:
    """Load a converted model: a checkpoint folder, the folder of a run, or a hub name.

    Args:
        dtype: of the weights, "float32", "bfloat16", "float16" or a torch dtype; "auto": bfloat16 on a CUDA GPU, else
            float32.
        compile: decode through `torch.compile`: about half a minute is lost at first, then each forward is faster.
        pack: lay out the weights for the CPU's matrix kernels: faster there, and nothing elsewhere. Such a model only
            writes: it cannot be trained, copied or saved, nor compiled.
        trust_remote_code: run code that its AR model came with; else none runs (`modeling_opdlm.py` never does).
    """
    if compile and pack:
        raise UsageError("a packed model cannot be compiled; leave out one of compile and pack")
    folder = finished(path)
    with remote_code(trust_remote_code):
        there = pick_device(device)
        model, tokenizer = load_checkpoint(folder, device=there, dtype=pick_dtype(dtype, there))
    if compile:
        model.compile_decoding()
    if pack:
        pack_where_it_pays(model.model)
    return DiffusionLM(model, tokenizer, generation_settings(model.model.generation_config))


def load_autoregressive(
    path: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    pack: bool = False,
    trust_remote_code: bool = False,
) -> DiffusionLM:
    """An AR model as it is, a folder or a hub name: it writes one token a forward, through the same engine.

    `dtype`, `pack`: as for `load`.
    """
    with remote_code(trust_remote_code):
        there = pick_device(device)
        model, tokenizer = load_ar_model(path, device=there, dtype=pick_dtype(dtype, there))
    if pack:
        pack_where_it_pays(model)
    plain = BlockDiffusionModel(model, AUTOREGRESSIVE, NO_MASK)
    return DiffusionLM(plain, tokenizer, GenerationSettings(decoding=SequentialDecoding()))


def check_context(prompts: Sequence[Sequence[int]], max_new_tokens: int, limit: int | None, block_size: int) -> None:
    """Raises ContextLengthError if the longest prompt leaves no room for the response, in whole blocks."""
    longest = max(map(len, prompts))
    check_length(longest, longest + max_new_tokens, limit, block_size)
