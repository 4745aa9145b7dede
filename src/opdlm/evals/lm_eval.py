"""A converted model for EleutherAI's lm-evaluation-harness: `opdlm lm-eval`, or `simple_evaluate(model=OpdlmLM(...))`.

Text is encoded as the harness's own `hf` model encodes it, so that the two can be compared number by number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any, cast, get_args

from tqdm import tqdm

import opdlm
from opdlm.config import GenerationSettings, settings_from
from opdlm.core.types import Rollout
from opdlm.errors import ContextLengthError, MissingExtraError, PromptsError, UsageError
from opdlm.evals.scoring import (
    Kind,
    Scoring,
    Text,
    check_kind,
    log_likelihoods,
    longest_text,
    reads_from_left_to_right,
)
from opdlm.models.tokens import encode_text
from opdlm.sampling.api import DiffusionLM, load
from opdlm.sampling.engine import Engine
from opdlm.sampling.request import Request
from opdlm.sampling.requests import continuations
from opdlm.sampling.stopping import StopStrings

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import (
        DEFAULT_MAX_LENGTH,
        maybe_truncate,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
except ImportError as error:
    raise MissingExtraError(
        "the evaluation harness is not installed; install it with: pip install 'opdlm[lm-eval]'"
    ) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MODEL = "opdlm"
"""Its name in the harness."""
_FOR_DATA_SETS = "trust_remote_code"  # the harness gives it to every model; `opdlm lm-eval` has read it by then


class OpdlmLM(TemplateLM):
    """The harness's view of a converted model: likelihoods of given text, and text written by the engine."""

    def __init__(
        self,
        pretrained: str | DiffusionLM | None = None,
        *,
        decoding: str | None = None,
        likelihood: str = "auto",
        likelihood_samples: int = 128,
        seed: int = 0,
        batch_size: int | str = 32,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        device: str = "auto",
        dtype: str = "auto",
        **unknown: Any,
    ) -> None:
        """The keywords are what `--model_args` takes.

        Args:
            pretrained: folder or hub name of a converted model, or a loaded one (with its own device and dtype).
            decoding: how text is written; default: as the model's generation config says. A task's generation_kwargs,
                and `--gen_kwargs`, may have any field of GenerationSettings, this one too.
            likelihood: "causal", "sequential" or "bound" (`evals.scoring`); "auto": causal where the model reads from
                left to right, else bound.
            likelihood_samples: of "bound", states drawn for each block.
            seed: of draws; request i of a task samples from seed + i.
            batch_size: texts at once.
            max_length: most tokens of prompt and response; default: the model's context.
            max_gen_toks: most tokens written, where the task says nothing.
            dtype: of the weights: float32, bfloat16, float16, or auto (bfloat16 on a CUDA GPU).

        Raises:
            UsageError: one of these does not exist or does not fit the model; errors of `load`.
        """
        super().__init__()
        _refuse(unknown)
        if pretrained is None:
            raise UsageError("no model is named; give --model_args pretrained=FOLDER")
        if not isinstance(batch_size, int) and not str(batch_size).isdecimal():
            raise UsageError(f"batch_size {batch_size!r} is no number, and nothing is tried out; give one, such as 32")
        if not isinstance(pretrained, DiffusionLM):
            pretrained = load(str(pretrained), str(device), dtype, pack=True)
        self.lm, self.model, self.tokenizer = pretrained, pretrained.model, pretrained.tokenizer
        self._device = self.model.device
        self.batch_size, self.max_gen_toks = int(batch_size), int(max_gen_toks)
        chosen = {} if decoding is None else {"decoding": decoding}
        self.defaults = settings_from(GenerationSettings, {**pretrained.defaults.model_dump(), **chosen, "seed": seed})
        self.scoring = Scoring(self._kind(likelihood), int(likelihood_samples), int(seed))
        for name, value in (("batch_size", self.batch_size), ("likelihood_samples", self.scoring.samples)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1; give a larger one")
        limit, own = self.model.max_length, max_length and int(max_length)
        if own is not None and not 2 <= own <= (limit or own):
            raise UsageError(f"max_length is {own}; it must be at least 2, and the model's context ends at {limit}")
        self._known_stops: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.max_length = own or limit or DEFAULT_MAX_LENGTH

    def _kind(self, likelihood: str) -> Kind:
        if likelihood == "auto":
            return "causal" if reads_from_left_to_right(self.model) else "bound"
        if likelihood not in get_args(Kind):
            raise UsageError(f"there is no likelihood {likelihood!r}; choose auto, {', '.join(get_args(Kind))}")
        kind = cast(Kind, likelihood)
        check_kind(self.model, kind)
        return kind

    # --- text and tokens ----------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. UsageError where there is none."""
        if not self.lm.tokens.stop_token_ids:
            raise UsageError("the tokenizer has no end-of-sequence token; name one in tokenizer_config.json")
        return self.lm.tokens.stop_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: the beginning-of-sequence token, else the end's."""
        begin = self.tokenizer.bos_token_id
        return begin if isinstance(begin, int) else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, with BOS where the tokenizer puts one and the text has none; nothing is put behind."""
        begin = str(self.tokenizer.decode([self.prefix_token_id]))
        if add_special_tokens is False or (add_special_tokens is None and string.startswith(begin)):
            return self.tokenizer(string, add_special_tokens=False)["input_ids"]
        return encode_text(self.tokenizer, string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as one text. PromptsError where the tokenizer has no chat template."""
        if not self.tokenizer.chat_template:
            raise PromptsError("the tokenizer has no chat template; leave out --apply_chat_template")
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return cast(str, text)

    # --- likelihood ---------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, greedy) of each; a context that is too long loses its beginning."""
        texts = [self._fitted(context, continuation) for _, context, continuation in requests]
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(texts), desc="loglikelihood", disable=disable_tqdm) as bar:
            for index, score in log_likelihoods(self.model, texts, self.scoring, self.batch_size):
                found[index] = score.log_likelihood, score.greedy
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
                bar.update()
        return [found[index] for index in range(len(texts))]

    def _fitted(self, context: Sequence[int], continuation: Sequence[int]) -> Text:
        room = longest_text(self.model, self.scoring.kind, self.max_length) - len(continuation)
        if room < 1:
            raise ContextLengthError(
                f"{len(continuation)} tokens are to be scored, and the model's context ends at {self.max_length}; "
                "leave the text out or shorten it"
            )
        return Text(tuple(context[-room:]), tuple(continuation))

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of whole texts, cut as the harness cuts them into windows of the model's context."""
        most = longest_text(self.model, self.scoring.kind, self.max_length) - 1
        owners, windows = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for pair in utils.get_rolling_token_windows(ids, self.prefix_token_id, most, context_len=1):
                owners.append(owner)
                windows.append((None, *utils.make_disjoint_window(pair)))
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm)
        for owner, (nats, _) in zip(owners, scores, strict=True):
            totals[owner] += nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # --- generation ---------------------------------------------------------------------------------------------

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to its first stop string; each request has its own settings."""
        given: list[tuple[str, dict[str, Any]]] = [cast(Any, request.args) for request in requests]
        wanted = [self._wanted(kwargs, index) for index, (_, kwargs) in enumerate(given)]
        rows = zip(given, wanted, strict=True)
        made = [self._request(context, want.settings) for (context, _), want in rows]
        texts: dict[int, str] = {}
        engine = Engine(self.model, self.lm.tokens, self.batch_size, self.tokenizer)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for index, row in engine.finished(made):
                texts[index] = postprocess_generated_text(self._response(row), list(wanted[index].until), None)
                self.cache_hook.add_partial("generate_until", given[index], texts[index])
                bar.update()
        return [texts[index] for index in range(len(requests))]

    def _request(self, context: str, settings: GenerationSettings) -> Request:
        """A context that is too long loses its beginning."""
        size, new = self.model.geometry.block_size, settings.max_new_tokens
        most = self.max_length // size * size
        if new >= most:
            raise ContextLengthError(
                f"{new} new tokens leave no room for a prompt in the context of {most}; lower max_gen_toks"
            )
        ids, _ = maybe_truncate(self.tok_encode(context), new, most)
        return continuations([ids or [self.prefix_token_id]], settings)[0]

    def _wanted(self, generation_kwargs: dict[str, Any], index: int) -> "_Wanted":
        """Settings of one request from what its task says; ConfigError names what does not exist."""
        given: dict[str, Any] = dict(normalize_gen_kwargs(generation_kwargs, self.max_gen_toks))
        until = tuple(string for string in given.pop("until") if string)
        given.pop("do_sample")  # temperature 0 says the same
        most, temperature = given.pop("max_gen_toks"), given.pop("temperature", 0.0)
        own = {"max_new_tokens": most, "temperature": temperature, "stop_strings": self._writable(until)}
        settings = settings_from(GenerationSettings, {**self.defaults.model_dump(), **given, **own})
        return _Wanted(settings.model_copy(update={"seed": settings.seed + index}), until)

    def _writable(self, strings: tuple[str, ...]) -> tuple[str, ...]:
        """Those that this tokenizer can write: the engine refuses to look out for others."""
        if strings not in self._known_stops:
            every = not strings or self._can_write(*strings)
            self._known_stops[strings] = strings if every else tuple(filter(self._can_write, strings))
        return self._known_stops[strings]

    def _can_write(self, *strings: str) -> bool:
        try:
            StopStrings(self.tokenizer, strings)
        except UsageError:
            return False
        return True

    def _response(self, row: Rollout) -> str:
        ids = row.input_ids[0, int(row.prompt_length) : int(row.length)].tolist()
        return cast(str, self.tokenizer.decode(ids, skip_special_tokens=True))

    # --- for the record -----------------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results beside the arguments."""
        geometry = self.model.geometry
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in self.model.model.parameters()),
            "model_dtype": str(self.model.dtype),
            "opdlm_version": opdlm.__version__,
            "block_size": geometry.block_size,
            "prediction": geometry.prediction,
            "context": geometry.context,
            "decoding": self.defaults.decoding.model_dump(),
            "likelihood": self.scoring.kind,
            "likelihood_samples": self.scoring.samples if self.scoring.kind == "bound" else None,
        }


@dataclass(frozen=True)
class _Wanted:
    """How one request is written. Attributes: until: all stop strings, also those that are not writable."""

    settings: GenerationSettings
    until: tuple[str, ...]


def register() -> None:
    """Makes `--model opdlm` known to the harness."""
    import lm_eval.models  # noqa: F401  # first: the harness registers its own models only where there are none
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=OpdlmLM)


def _refuse(unknown: dict[str, Any]) -> None:
    """UsageError for a model argument that does not exist."""
    name = next((name for name in unknown if name != _FOR_DATA_SETS), None)
    if name is None:
        return
    known = [name for name in signature(OpdlmLM.__init__).parameters if name not in ("self", "unknown")]
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}" if near else f"known are {', '.join(known)}"
    raise UsageError(f"unknown model argument {name!r}; {hint}")
