"""The models that ship with the package are what the documentation says, and work at once."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opdlm.checkpoints.attach import Donor
from opdlm.checkpoints.gate_folder import read_gate
from opdlm.checkpoints.load import load_ar_model
from opdlm.config import GenerationSettings
from opdlm.errors import UsageError
from opdlm.evals.answers import answered
from opdlm.evals.writers import ar_writer
from opdlm.models.gate import Gate
from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import load
from opdlm.tiny.families import evaluation_set
from opdlm.tiny.weights import ar_model_path, lossless_path, student_path

PER_FAMILY = 24
SMOLLM2 = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    tie_word_embeddings=True,
)
"""The sizes of SmolLM2-135M (config.json of HuggingFaceTB/SmolLM2-135M-Instruct)."""


@pytest.mark.parametrize(
    "folder", [ar_model_path(), student_path(), lossless_path()], ids=["ar_model", "student", "lossless"]
)
def test_weights_are_the_published_ones(folder: Path) -> None:
    """Else a changed file would go unnoticed, or the package would grow beyond what was promised (6 MB a model)."""
    digest, name = (folder / "SHA256SUMS").read_text().split()
    weights = folder / name
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == digest
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6


def test_the_gate_for_a_model_that_does_not_ship() -> None:
    """Else `attach examples/smollm2-gate` would refuse its model, or the gate be larger than 12 MB."""
    folder = Path(__file__).parents[2] / "examples" / "smollm2-gate"
    digest, name = (folder / "SHA256SUMS").read_text().split()
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    donor = Donor.found(folder)
    with torch.device("meta"):
        gate = Gate(LlamaForCausalLM(SMOLLM2), donor.about.rank, donor.about.form, donor.about.window)
    expected = {}
    for name, layer in zip(gate.names, gate.layers, strict=True):
        expected[f"{name}.lora_A"] = layer.get_parameter("down").shape
        expected[f"{name}.lora_B"] = layer.get_parameter("up").T.shape
    assert {name: tensor.shape for name, tensor in read_gate(folder).items()} == expected


def test_the_ar_model_knows_its_tasks() -> None:
    """Else every number of the demo would be relative to a teacher that cannot do the tasks."""
    model, tokenizer = load_ar_model(ar_model_path())
    writer = ar_writer(model, tokenizer, GenerationSettings(max_new_tokens=64), batch_size=32)
    report = answered("teacher", writer, evaluation_set(PER_FAMILY))
    assert all(row.accuracy >= 0.9 for row in report.families)
    assert report.accuracy >= 0.95


def test_the_student_answers_and_saves_forwards() -> None:
    """Else `opdlm generate` would disappoint right after the install."""
    student = load(student_path())
    problems = [p for p in evaluation_set(PER_FAMILY) if p.family in ("maths", "code")]
    prompts = [
        student.tokenizer.apply_chat_template(
            [{"role": "user", "content": p.prompt}], add_generation_prompt=True, return_dict=False
        )
        for p in problems
    ]
    output = student.generate(prompts, max_new_tokens=64)
    right = [text == p.response for text, p in zip(student.decode(output), problems, strict=True)]
    assert sum(right) / len(right) >= 0.9
    assert output.tokens_per_forward > 1.3


def test_the_gate_writes_the_originals_text_in_fewer_forwards() -> None:
    """Else what is said of lossless decoding would not hold for the model that everybody has."""
    drafts = load(lossless_path())
    ar_model, tokenizer = load_ar_model(ar_model_path())
    problems = evaluation_set(PER_FAMILY)
    writer = ar_writer(ar_model, tokenizer, GenerationSettings(max_new_tokens=64), batch_size=32)
    expected = dict(writer([problem.prompt for problem in problems]))
    prompts = [encode_prompt(tokenizer, problem.prompt) for problem in problems]
    output = drafts.generate(prompts, max_new_tokens=64, decoding="verified")
    assert drafts.decode(output) == [expected[index].text for index in range(len(problems))]
    assert output.tokens_per_forward > 2.5


def test_threads_share_a_lossless_model() -> None:
    """Else threads would mix up whose tokens go through the gate, and the text would not be the original's."""
    drafts = load(lossless_path())
    asked = [problem.prompt for problem in evaluation_set(2)]

    def written(prompt: str | list[dict[str, str]]) -> str:
        return drafts.write(prompt, decoding="verified", max_new_tokens=16)

    expected = list(map(written, asked))
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            assert list(threads.map(written, asked)) == expected


def test_what_is_no_token_id_is_refused() -> None:
    """Else who passes a text, or one dimension too many, would get an error of the machinery."""
    student = load(student_path())
    for wrong in (["text"], [["a", "b"]], [[[1, 2]]]):
        with pytest.raises(UsageError, match="token ids alone"):
            student.generate(wrong)  # type: ignore[arg-type]
    for wrong in ([1, 2], [[1], None], None, torch.tensor(3)):
        with pytest.raises(UsageError, match="need two dimensions"):
            student.generate(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="token ids alone"):
        student.generate([[1, None]])  # type: ignore[list-item]


def test_a_wrong_mask_or_batch_size_is_refused() -> None:
    """Else a mask of another batch would end in an error of the machinery, or cut tokens off."""
    student = load(student_path())
    for mask in ([[1, 1]], [[1, 1, 1], [1, 1, 1]], [[1, 1, 1, 1]], torch.ones(1, 2)):
        with pytest.raises(UsageError, match="attention_mask has not the shape of input_ids"):
            student.generate([[5, 6, 7]], mask)  # type: ignore[arg-type]
    for mask in ([[1, None, 1]], [[1, 2, 1]], [["1", "1", "1"]]):
        with pytest.raises(UsageError, match="something else than 0 and 1"):
            student.generate([[5, 6, 7]], mask)  # type: ignore[arg-type]
    for mask in ([1, 1, 1], [None]):
        with pytest.raises(UsageError, match="attention_mask needs two dimensions"):
            student.generate([[5, 6, 7]], mask)  # type: ignore[arg-type]
    for batch_size in ("8", None, 2.5, 0):
        with pytest.raises(UsageError, match="whole number, at least 1"):
            student.generate([[5, 6, 7]], batch_size=batch_size)  # type: ignore[arg-type]
    padded = student.generate([[9, 5, 6, 7]], torch.tensor([[0.0, 1, 1, 1]]), max_new_tokens=2)
    assert torch.equal(padded.sequences, student.generate([[5, 6, 7]], max_new_tokens=2).sequences)
