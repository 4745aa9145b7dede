"""The exported adapter in SGLang's cycle of two forwards, written out with peft and plain transformers."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from lossless import ENDLESS, drafting, responses
from opdlm.checkpoints.export_uno import export_uno
from opdlm.config import GenerationSettings
from opdlm.core.windows import WindowChoice, noise, select_windows
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.errors import OutputExistsError, UsageError
from opdlm.models.parts import cache_argument
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations
from rollouts import random_prompts, student
from support import VOCABULARY, tiny_model

peft = pytest.importorskip("peft")
WINDOW, NEW = 3, 24


def uno_cycle(model, prompt: list[int], seed: int) -> tuple[list[int], dict[int, list[int]]]:
    """Text of the draft-and-verify cycle, and the drafts behind each anchor.

    Draft forward over [last token, noise...]: adapter off on the first, on for the rest, causal. Verify forward over
    [the base's next token, drafts...], base alone: the longest equal prefix and the base's own token behind it.
    """
    text, found = list(prompt), {}
    while len(text) < len(prompt) + NEW:
        anchor = len(text)
        place = torch.arange(WINDOW)
        ids = noise(torch.tensor([seed]), torch.tensor([anchor]).expand(WINDOW), place, VOCABULARY)
        cached = {cache_argument(model.get_base_model().forward) or "": DynamicCache()}
        with torch.no_grad(), model.disable_adapter():
            clean = model(input_ids=torch.tensor([text]), use_cache=True, **cached).logits[0, -1]
        with torch.no_grad():
            drafted = model(input_ids=ids[None], use_cache=True, **cached).logits[0]
        found[anchor] = drafted.argmax(-1).tolist()
        candidates = [int(clean.argmax()), *found[anchor]]
        with torch.no_grad(), model.disable_adapter():
            target = model(input_ids=torch.tensor([text + candidates])).logits[0, anchor - 1 :].argmax(-1).tolist()
        accepted = 0
        while accepted < WINDOW and candidates[1 + accepted] == target[1 + accepted]:
            accepted += 1
        text += [*candidates[: 1 + accepted], target[1 + accepted]]
    return text[len(prompt) : len(prompt) + NEW], found


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks by the old name
def test_the_cycle_writes_the_bases_text_from_our_drafts(tmp_path: Path) -> None:
    """Else a stock engine would draft from another distribution than was trained, or from the wrong rows."""
    ours = drafting(form="noise", window=WINDOW, change=0.2)
    export_uno(ours, "base", tmp_path / "uno")
    theirs = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "uno"))
    settings = GenerationSettings.model_validate({"decoding": "verified", "max_new_tokens": NEW})
    prompts = random_prompts((2, 5, 9))
    rollout = Engine(ours, ENDLESS).write(continuations(prompts, settings))
    pair = Pair.of(ours, Teacher(ours), ENDLESS)
    windows = select_windows(rollout, WindowChoice(WINDOW, "all", VOCABULARY), torch.arange(3))
    drafts: dict[tuple[int, int], list[int]] = {}

    def keep(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        rows = zip(
            outputs.argmax(-1).tolist(), windows.row[part].tolist(), windows.predictor[part].tolist(), strict=True
        )
        for token, row, column in rows:
            drafts.setdefault((row, int(windows.anchor[row, column])), []).append(token)
        return outputs.sum(-1)

    pair.training_pass(windows, keep, pair.teacher.clean_pass(rollout))
    for row, prompt in enumerate(prompts):
        text, found = uno_cycle(theirs, prompt, seed=row)
        assert text == responses(rollout)[row]
        assert len(found) > 4
        for anchor, tokens in found.items():
            mine = drafts.get((row, anchor), [])
            assert mine == tokens[: len(mine)], (row, anchor)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    """Else an engine would load an adapter that it cannot use, or a folder would be overwritten."""
    with pytest.raises(UsageError, match="only a lossless model"):
        export_uno(student(), "base", tmp_path / "a")
    with pytest.raises(UsageError, match="--window-form noise"):
        export_uno(drafting(form="mask"), "base", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_text("mine")
    with pytest.raises(OutputExistsError):
        export_uno(drafting(form="noise"), "base", tmp_path / "b")
