"""One question that a student answers again and again while it learns."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opdlm.cli.views import ConversionView
from opdlm.config import ConvertSettings, VerifiedDecoding, as_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdlm.distill.loop import Trainer
    from opdlm.evals.problem import Problem
    from opdlm.records.metrics import StepMetrics
    from opdlm.records.trajectory import Trajectory

_SAMPLES_SHOWN = 8


@dataclass
class Sampler:
    """Hand `start` and `step` to a conversion."""

    problem: "Problem"
    view: ConversionView
    settings: ConvertSettings
    tokenizer: "PreTrainedTokenizerBase | None" = None
    trainer: "Trainer | None" = None

    @property
    def decoding(self) -> str:
        """As the finished student decodes; with all drafts, where those would depend on the clock."""
        usual = self.settings.usual_decoding
        return as_text(usual.model_copy(update={"auto": False}) if isinstance(usual, VerifiedDecoding) else usual)

    def start(self, trainer: "Trainer") -> None:
        """Before the first rollout: what the untrained student answers."""
        from transformers import AutoTokenizer

        self.trainer, self.tokenizer = (
            trainer,
            AutoTokenizer.from_pretrained(self.settings.model, trust_remote_code=False),
        )
        self.view.note(f"question: {self.problem.prompt}   (right: {self.problem.answer})")
        self._show("so far" if trainer.checkpoint is not None else "before")

    def step(self, metrics: "StepMetrics") -> None:
        """Every now and then: what it answers now."""
        every = max(1, metrics.rollouts // _SAMPLES_SHOWN)
        if metrics.rollout % every == 0 or metrics.rollout == metrics.rollouts:
            self._show(f"after rollout {metrics.rollout}")

    def _show(self, when: str) -> None:
        from opdlm.evals.compare import greedy
        from opdlm.models.tokens import encode_prompt
        from opdlm.sampling.api import DiffusionLM

        assert self.trainer is not None
        assert self.tokenizer is not None
        settings = greedy(self.decoding, self.settings.response_length.end)
        student = DiffusionLM(self.trainer.pair.student, self.tokenizer, settings, self.trainer.pair.tokens)
        output = student.generate([encode_prompt(self.tokenizer, self.problem.prompt)])
        flat = " ".join(student.decode(output)[0].split())
        self.view.note(f"{when:>18}: {flat[:100]}  [{output.tokens_per_forward:.1f} tokens/forward]")

    def finished(self, model: Path) -> "Trajectory":
        """The finished student's answer with its commit steps, for the report."""
        from opdlm.evals.compare import greedy
        from opdlm.models.tokens import encode_prompt
        from opdlm.sampling.api import load
        from opdlm.sampling.recording import Recorder

        student, recorder = load(model, self.settings.device, "float32"), Recorder()
        settings = greedy(self.decoding, self.settings.response_length.end).model_dump()
        prompt = [encode_prompt(student.tokenizer, self.problem.prompt)]
        output = student.generate(prompt, streamer=recorder, observer=recorder.observe, **settings)
        made = recorder.told(output.trajectories()[0]).worded(student.token_text, str(self.problem.prompt))
        return made.model_copy(update={"answer": self.problem.answer, "decoding": self.decoding})
