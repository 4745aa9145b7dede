"""The Python functions: what they report, and that they print nothing."""

from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

import opdlm

SETTINGS = {
    "device": "cpu",
    "rollouts": 2,
    "prompts_per_rollout": 2,
    "rows_per_update": 1,
    "save_every_rollouts": 1,
    "response_length": {"start": 8, "end": 8},
}


def test_convert_reports_by_its_callback_alone(ar_model, tmp_path, capfd):
    """Else a program that converts could not show where it is, or its output would be full of foreign bars."""
    logging.enable_progress_bar()  # a command of an earlier test may have switched them off for this process
    seen = []
    folder = opdlm.convert(ar_model, ["one", "two", "six"], tmp_path / "run", on_step=seen.append, **SETTINGS)
    model = opdlm.load(folder)
    assert model.write("one", max_new_tokens=4) is not None
    assert [(step.rollout, step.rollouts) for step in seen] == [(1, 2), (2, 2)]
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""
    assert logging.is_progress_bar_enabled(), "the caller's own setting must come back"
    assert not are_progress_bars_disabled()
