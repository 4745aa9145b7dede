"""A converted model and its original on the field's tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from opdlm.config import GenerationSettings, settings_from
from opdlm.core.layout import AUTOREGRESSIVE
from opdlm.evals.answers import answered, evaluation
from opdlm.evals.compare import OnAnswer, OnProgress, check_ways
from opdlm.evals.problem import Asked, Problem, as_asked, as_options
from opdlm.evals.scoring import Scoring, Text, log_likelihoods
from opdlm.evals.suites.choosing import choosing, texts_of
from opdlm.evals.suites.suite import Suite
from opdlm.evals.writers import Writer, ar_writer, diffusion_writer, encode
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.devices import dtype_name
from opdlm.records.evaluation import Comparison, GradedAnswer
from opdlm.sampling.api import DiffusionLM, check_context

Tests = Sequence[tuple[Suite, Sequence[Problem]]]


@dataclass(frozen=True)
class _Contestant:
    """Who answers. `writes`: settings -> a writer of text. `chooses`: a writer that chooses."""

    name: str
    decoding: str
    writes: Callable[[GenerationSettings], Writer]
    chooses: Writer


def evaluate_suites(
    student: DiffusionLM,
    ar_model: PreTrainedModel,
    tests: Tests,
    decodings: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    kept: Sequence[GradedAnswer] = (),
    on_progress: OnProgress = lambda name, done, total: None,
    on_answer: OnAnswer = lambda answer: None,
    allow_unconfined_code: bool = False,
    **sampling: Any,
) -> Comparison:
    """Both models on every suite, the original first; the student once for each decoding.

    Of a suite with `known_only`, those problems count that the original answers rightly: the others show nothing of
    what a conversion loses. The original's score in such a suite is therefore 1, of as many problems as it knows.

    Args:
        tests: suites with their problems (`suite.load`).
        decodings: as in `compare.evaluate`.
        max_new_tokens: in place of each suite's own.
        kept: answers that an interrupted evaluation with the same arguments left.
        sampling: the fields of GenerationSettings in `writers.SAMPLING`, for both models.

    Raises:
        ContextLengthError: a problem and its answer do not fit into the context.
        UsageError: a decoding that the student does not have.
        UnconfinedCodeError: grading runs programs, and this system cannot confine them.
    """
    check_ways(student, decodings)
    run = _Run(student, tests, batch_size, max_new_tokens, sampling, allow_unconfined_code, on_progress)
    run.check_context()
    answers = [*kept]

    def keep(answer: GradedAnswer) -> None:
        answers.append(answer)
        on_answer(answer)

    contestants = _contestants(student, ar_model, decodings, batch_size)
    for suite, problems in tests:
        run.ask(contestants[0], suite, dict(enumerate(problems)), _of(contestants[0], kept), keep)
    counted = {suite.name: counting(suite, problems, answers) for suite, problems in tests}
    for who in contestants[1:]:
        for suite, _ in tests:
            run.ask(who, suite, counted[suite.name], _of(who, kept), keep)
    compared = _compared(contestants, answers, counted, batch_size)
    return compared.model_copy(update={"dtype": dtype_name(student.model.dtype)})


def counting(suite: Suite, problems: Sequence[Problem], answers: Sequence[GradedAnswer]) -> dict[int, Problem]:
    """The problems that count, by number: all, or those that the original, who is among `answers`, knows."""
    right = {one.number for one in answers if not one.decoding and one.family == suite.name and one.correct}
    return {number: one for number, one in enumerate(problems) if not suite.known_only or number in right}


@dataclass
class _Run:
    """What is the same for all who answer."""

    student: DiffusionLM
    tests: Tests
    batch_size: int
    max_new_tokens: int | None
    sampling: Mapping[str, Any]
    allow_unconfined_code: bool
    on_progress: OnProgress
    _warm: str | None = None  # who has written before

    def ask(
        self,
        who: _Contestant,
        suite: Suite,
        numbered: Mapping[int, Problem],
        kept: Sequence[GradedAnswer],
        keep: OnAnswer,
    ) -> None:
        """One suite, to one of them; nothing where no problem is left."""
        if not numbered:
            return
        own = {"max_new_tokens": self._length(suite)} | ({"decoding": who.decoding} if who.decoding else {})
        settings = settings_from(GenerationSettings, {**self.sampling, **own})
        answered(
            who.name,
            who.chooses if suite.chooses else who.writes(settings),
            list(numbered.values()),
            decoding=who.decoding,
            ask=as_options if suite.chooses else self._asked,
            numbers=list(numbered),
            kept=[one for one in kept if one.family == suite.name and one.number in numbered],
            warm_up=self._warm != who.name and not suite.chooses,
            on_progress=partial(self.on_progress, f"{who.decoding or who.name}, {suite.name}"),
            on_answer=keep,
            allow_unconfined_code=self.allow_unconfined_code,
        )
        self._warm = self._warm if suite.chooses else who.name

    def check_context(self) -> None:
        """Raises ContextLengthError before anybody has answered."""
        tokenizer, model = self.student.tokenizer, self.student.model
        for suite, problems in self.tests:
            if suite.chooses:
                texts = [
                    [*text.context, *text.continuation]
                    for problem in problems
                    for text in texts_of(tokenizer, as_options(problem))
                ]
            else:
                texts = [encode(tokenizer, self._asked(problem)) for problem in problems]
            length = 0 if suite.chooses else self._length(suite)
            check_context(texts, length, model.max_length, model.geometry.block_size)

    def _length(self, suite: Suite) -> int:
        return self.max_new_tokens or suite.max_new_tokens

    def _asked(self, problem: Problem) -> Asked:
        return as_asked(problem, has_chat_template=bool(self.student.tokenizer.chat_template))


def _compared(
    contestants: Sequence[_Contestant],
    answers: Sequence[GradedAnswer],
    counted: Mapping[str, Mapping[int, Problem]],
    batch_size: int,
) -> Comparison:
    """Evaluations of the answers to the problems that count, by suite and number."""
    made, texts = [], {}  # (suite, number) -> the original's response
    for who in contestants:
        of_one = {(one.family, one.number): one for one in _of(who, answers)}
        in_order = [of_one[name, number] for name, numbers in counted.items() for number in numbers]
        texts = texts or {place: one.response for place, one in of_one.items()}
        same = sum(texts[one.family, one.number] == one.response for one in in_order)
        part = evaluation(who.name, who.decoding, in_order)
        made.append(part.model_copy(update={"same_text": same}) if who.decoding else part)
    return Comparison(teacher=made[0], students=tuple(made[1:]), batch_size=batch_size)


def _of(who: _Contestant, answers: Sequence[GradedAnswer]) -> list[GradedAnswer]:
    return [one for one in answers if one.decoding == who.decoding]


def _contestants(
    student: DiffusionLM, ar_model: PreTrainedModel, decodings: Sequence[str], batch_size: int
) -> list[_Contestant]:
    """The original, and the student with each decoding."""
    tokenizer = student.tokenizer

    def by_student(settings: GenerationSettings) -> Writer:
        return diffusion_writer(partial(student.finished, settings=settings, batch_size=batch_size), tokenizer)

    original = BlockDiffusionModel(ar_model, AUTOREGRESSIVE, NO_MASK)
    chooses = choosing(tokenizer, partial(_likelihoods, student.model))
    return [
        _Contestant(
            "teacher",
            "",
            lambda settings: ar_writer(ar_model, tokenizer, settings, batch_size=batch_size),
            choosing(tokenizer, partial(_likelihoods, original)),
        ),
        *(_Contestant(f"student, {decoding}", decoding, by_student, chooses) for decoding in decodings),
    ]


def _likelihoods(model: BlockDiffusionModel, texts: Sequence[Text]) -> list[float]:
    """Nats of each continuation, written from left to right; exact."""
    how = Scoring("causal" if model.mask_token_id == NO_MASK else "sequential")
    found = dict(log_likelihoods(model, texts, how))
    return [found[index].log_likelihood for index in range(len(texts))]
