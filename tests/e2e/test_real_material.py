"""A model and texts that were not made for this project, where they are at hand."""

import json
import re
from pathlib import Path

import pytest

from opdlm.cli.main import main

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODEL, STORIES = SHARED / "models" / "stories260k", SHARED / "data" / "tinystories" / "tinystories_1000.json"

pytestmark = pytest.mark.skipif(
    not (MODEL.is_dir() and STORIES.is_file()),
    reason="needs stories260k and TinyStories in a folder `shared` beside the checkout",
)


def test_stories_from_conversion_to_likelihood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the commands of the log's entry on stories260K could stop working: a full vocabulary, no chat template,
    prompts cut from a corpus."""
    run, numbers = str(tmp_path / "run"), tmp_path / "bits.json"
    beginnings = ["--prompts", str(STORIES), "--prompt-tokens", "16", "--prompt-limit", "8"]
    size = ["--rollouts", "1", "--prompts-per-rollout", "8", "--rows-per-update", "8", "--response-length.end", "16"]
    ramp = ["--response-length.start", "16", "--response-length.rollouts", "0"]
    assert main(["convert", str(MODEL), *beginnings, "--output", run, *size, *ramp]) == 0
    assert main(["generate", run, "Once upon a time", "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["generate", run, "--infill", "One day[[MASK:1]]b\n[[MASK:1]] c  ."]) == 0
    assert re.fullmatch(r"One day.*b\n.* c  \.\n", capsys.readouterr().out, re.DOTALL)
    limits = ["--max-new-tokens", "16", "--decoding", "static", "--json", str(numbers)]
    assert main(["eval", run, "--against", str(MODEL), *beginnings, *limits]) == 0
    rows = json.loads(numbers.read_text())["likelihood"]
    assert [row["writer"] for row in rows] == ["original", "student before", "student"]
    assert all(0.1 < row["bits_per_byte"] < 10 for row in rows)
