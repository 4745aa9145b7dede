"""The method in one file of plain torch (examples/opd_one_file.py) and the library compute the same."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from opdlm.config import GenerationSettings
from opdlm.core.divergence import forward_kl
from opdlm.core.types import StateBatch
from opdlm.distill.losses import divergence_loss
from opdlm.distill.teacher import Teacher
from rollouts import TOKENS, ar_model, fresh_student, pair_of, random_prompts, states_of, student
from sampling_support import generated
from support import MASK, tiny_tokenizer

_PATH = Path(__file__).parents[2] / "examples" / "opd_one_file.py"
_SPEC = importlib.util.spec_from_file_location("opd_one_file", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
one_file = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(one_file)

STOPS = list(TOKENS.stop_token_ids)


@pytest.mark.parametrize("size", [1, 4, 8])
def test_it_writes_what_the_library_writes(size: int) -> None:
    """Else the readable version of decoding would be another one than the fast version that everybody runs."""
    prompts = random_prompts()
    settings = GenerationSettings(max_new_tokens=18, decoding="dynamic:0.5")  # type: ignore[arg-type]
    rollout = generated(student(size), TOKENS, settings, prompts)
    for row, prompt in enumerate(prompts):
        text = one_file.write(ar_model(), prompt, MASK, STOPS, size, 18, threshold=0.5, temperature=0.0)
        end = int(rollout.end[row])
        assert text.ids.tolist() == rollout.input_ids[row, :end].tolist()
        assert text.steps.clamp(max=32_000).tolist() == rollout.commit_step[row, :end].tolist()
        assert (text.prompt, text.length) == (len(prompt), int(rollout.length[row]))


def chosen_steps(states: StateBatch, steps: torch.Tensor, size: int) -> dict[int, int]:
    """First position of each noised block in the one row of `states` -> its step, read off what is masked."""
    noised = (states.stream[0] > 0) & (states.input_ids[0] == MASK)
    chosen: dict[int, int] = {}
    for position in states.position_ids[0, noised].tolist():
        start = position // size * size
        chosen[start] = min(chosen.get(start, one_file.NEVER), int(steps[position]))
    return chosen


@pytest.mark.parametrize("size", [1, 4, 8])
def test_its_loss_and_gradient_are_the_librarys(size: int) -> None:
    """Else the readable version would teach another method than the one that is run, or the fast one has a fault.

    The student is not the teacher: with equal weights every loss at S = 1 would be zero.
    """
    pupil, teacher = fresh_student(student(size).geometry, seed=1), Teacher(student(size))
    rollout = generated(pupil, TOKENS, GenerationSettings(max_new_tokens=18, temperature=1.0), random_prompts())
    parameters = [p for p in pupil.parameters() if p.requires_grad]
    for row in range(len(rollout.length)):
        alone = rollout.rows(torch.tensor([row]))
        states = states_of(alone, pupil.geometry, "one_per_block", torch.tensor([row]))
        found = divergence_loss(pair_of(pupil, teacher), forward_kl, states, alone, teacher.targets(alone))
        text = one_file.Text(alone.input_ids[0], alone.commit_step[0], *map(int, (alone.prompt_length, alone.length)))
        chosen = chosen_steps(states, text.steps, size)
        expected, count = one_file.divergence(pupil.model, ar_model(), text, chosen, MASK, size)
        assert found.count == count > 0
        assert_close(found.total, expected, atol=1e-4, rtol=1e-4)
        for one, other in zip(
            *(torch.autograd.grad(loss, parameters) for loss in (found.total, expected)), strict=True
        ):
            assert_close(one, other, atol=2e-4, rtol=2e-3)


def test_it_chooses_realised_steps() -> None:
    """Else it would train on states after the last step, with nothing masked, or never on some."""
    text = one_file.Text(torch.arange(12), torch.tensor([-1] * 5 + [1, 0, 1, 0, one_file.NEVER, 1, 2]), 5, 9)
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(one_file.choose_steps(text, 4, generator).items()) for _ in range(200)}
    assert seen == {((4, a), (8, b)) for a in range(2) for b in range(3)}


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the first thing that a reader tries would fail; the mask token is added on the way."""
    fresh_student().model.save_pretrained(tmp_path / "ar_model")
    tiny_tokenizer().save_pretrained(tmp_path / "ar_model")
    options = ["--steps", "3", "--max-new-tokens", "8", "--learning-rate", "0.003"]
    monkeypatch.setattr("sys.argv", ["opd_one_file.py", str(tmp_path / "ar_model"), "abc", "what is 2+2?", *options])
    one_file.main()
    printed = capsys.readouterr().out
    losses = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step")]
    assert len(losses) == 3
    assert losses[2] < losses[0]
