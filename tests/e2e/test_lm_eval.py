"""A converted model in lm-evaluation-harness: its own task classes on local files, against its own `hf` model."""

import json
import sys
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli_support import call, fails
from lossless import drafting
from opdlm.checkpoints.save import save_checkpoint
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.errors import ConfigError, ContextLengthError, PromptsError, UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import find_or_add_mask_token
from opdlm.sampling.api import DiffusionLM
from support import tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytestmark = [
    # lm-eval's own: it looks up the commit of the folder it runs in, and opens files that it leaves to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

from opdlm.evals.lm_eval import OpdlmLM  # noqa: E402

LENGTH = 24
DOCUMENTS = [
    {"question": "which one?", "choices": ["a cat", "b", "nothing at all"], "label": 1, "text": "one two three."},
    {"question": "is 2+2 four", "choices": ["yes", "no", "may be"], "label": 0, "text": "a longer text, of two parts."},
    {"question": "q", "choices": ["x", "yy", "zzz"], "label": 2, "text": "z"},
]
COMMON = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}} A:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}} ",
        "doc_to_target": "{{choices[0]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}} A:",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["e", "\r"], "max_gen_toks": LENGTH, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks as YAML files beside their data."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    (tmp_path / "tasks").mkdir()
    for name, task in TASKS.items():
        content = {"task": name, **COMMON, "dataset_kwargs": {"data_files": {"test": str(data)}}, **task}
        (tmp_path / "tasks" / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML
    return tmp_path


def ar_model():
    """As many rows as the tokenizer has tokens, so that a mask token needs a new one."""
    return tiny_model(vocab_size=len(tiny_tokenizer()), initializer_range=0.35)


def lossless(**settings: Any) -> OpdlmLM:
    model = drafting(vocab_size=len(tiny_tokenizer()), initializer_range=0.35)
    return OpdlmLM(
        DiffusionLM(model, tiny_tokenizer(), GenerationSettings.model_validate({"decoding": "verified"})), **settings
    )


def student(geometry: Geometry, chat: bool = False, **settings: Any) -> OpdlmLM:
    model, tokenizer = ar_model(), tiny_tokenizer(chat)
    mask = find_or_add_mask_token(model, tokenizer)
    return OpdlmLM(DiffusionLM(BlockDiffusionModel(model, geometry, mask), tokenizer, GenerationSettings()), **settings)


def hf() -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=ar_model(), tokenizer=tiny_tokenizer(), batch_size=2)


def responses(lm: Any, folder: Path, tasks: list[str], **options: Any) -> dict[str, Any]:
    """Everything that the model said to the harness, by task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)
    assert found is not None
    return {task: [sample["resps"] for sample in found["samples"][task]] for task in tasks}


def numbers(value: Any) -> list[float]:
    return [n for one in value for n in numbers(one)] if isinstance(value, list | tuple) else [float(value)]


@pytest.mark.parametrize("kind", ["lossless", "blocks of one", "blocks of one, bound", "causal reading"])
def test_likelihoods_are_those_of_the_harness_itself(kind, folder):
    """Without it a difference to the original's score would be ours, not the conversion's."""
    lm = {
        "lossless": lambda: lossless(),
        "blocks of one": lambda: student(Geometry(1, "shifted", "causal")),
        "blocks of one, bound": lambda: student(Geometry(1, "shifted", "block"), likelihood="bound"),
        "causal reading": lambda: student(Geometry(4, "shifted", "causal")),
    }[kind]()
    tasks = ["choices", "last_word", "rolling"]
    ours, theirs = responses(lm, folder, tasks), responses(hf(), folder, tasks)
    for task in tasks:
        assert numbers(ours[task]) == pytest.approx(numbers(theirs[task]), abs=2e-4), task


def test_long_texts_are_cut_as_the_harness_cuts_them(folder):
    """Without it windows of a long text, or a context without its beginning, would be scored differently from `hf`."""
    long = "abc def. " * 80
    pairs = [(long, "the end"), (long + "x", " y"), ("", "start")]
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    rolling = [SimpleNamespace(args=(long,)), SimpleNamespace(args=("short",))]
    ours, theirs = lossless(), hf()
    assert numbers(ours.loglikelihood(requests, disable_tqdm=True)) == pytest.approx(
        numbers(theirs.loglikelihood(requests, disable_tqdm=True)), abs=1e-3
    )
    assert ours.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        theirs.loglikelihood_rolling(rolling, disable_tqdm=True), abs=5e-3
    )


def test_texts_are_those_of_the_harness_itself(folder):
    """Without it stop strings or limits would act otherwise than in `hf`: a lossless model writes the same text."""
    assert responses(lossless(), folder, ["write"]) == responses(hf(), folder, ["write"])


def test_a_text_ends_before_its_stop_string(folder):
    """Without it graders would see what comes behind an answer."""
    free = {"until": ["\r"], "max_gen_toks": LENGTH}
    lm = student(Geometry(4, "same", "block"))
    whole = [row[0][0] for row in responses(lm, folder, ["write"], gen_kwargs=free)["write"]]
    stop = whole[0][5]
    cut = [row[0][0] for row in responses(lm, folder, ["write"], gen_kwargs={**free, "until": [stop]})["write"]]
    assert cut == [text.partition(stop)[0] for text in whole]
    assert all(len(text) <= LENGTH for text in whole)


def test_each_request_has_its_own_settings_at_any_batch_size():
    """Without it requests of several tasks would be written with one of their settings, or differ by the batch."""
    lm, one = (student(Geometry(4, "same", "block"), batch_size=size) for size in (8, 1))
    kwargs: list[dict[str, Any]] = [
        {"until": [], "max_gen_toks": 5},
        {"until": ["a"], "max_new_tokens": 12, "do_sample": True, "temperature": 0.8, "top_p": 0.9},
        {"until": "b", "max_gen_toks": 9, "decoding": "sequential"},
        {"max_gen_toks": 7, "do_sample": True, "temperature": 1.0, "seed": 3},
    ]
    requests = [SimpleNamespace(args=("What is it? ", kwarg)) for kwarg in kwargs * 2]
    found = lm.generate_until(requests, disable_tqdm=True)
    assert found == one.generate_until(requests, disable_tqdm=True)
    assert len(found[0]) <= 5
    assert found[0] == found[4]
    assert found[3] != found[7], "a sampled request that is asked again draws again"


def test_chat_template(folder):
    """Without it a chat model would be asked in a form that it never saw, or with two BOS tokens."""
    lm = student(Geometry(4, "same", "block"), chat=True)
    text = lm.apply_chat_template([{"role": "user", "content": "hi"}])
    assert text == "<s>u:hi;a:"
    assert lm.tok_encode(text).count(1) == 1
    assert responses(lm, folder, ["write"], apply_chat_template=True)
    with pytest.raises(PromptsError, match="chat template"):
        lossless().apply_chat_template([{"role": "user", "content": "hi"}])


def test_the_bound_is_of_the_seed(folder):
    """Without it two runs of one command would print two scores."""
    geometry = Geometry(8, "same", "block")
    made = [
        responses(student(geometry, likelihood_samples=8, seed=seed), folder, ["choices"])["choices"]
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


def test_wrong_arguments():
    """Without it a typing mistake would evaluate another model, or end in a traceback."""
    with pytest.raises(UsageError, match="did you mean 'likelihood'"):
        OpdlmLM("nowhere", likelihod="bound")
    with pytest.raises(UsageError, match="pretrained=FOLDER"):
        OpdlmLM()
    with pytest.raises(UsageError, match="nowhere"):
        OpdlmLM("nowhere")
    geometry = Geometry(4, "same", "block")
    for settings, message in (
        ({"likelihood": "causal"}, "choose sequential or bound"),
        ({"likelihood": "exact"}, "choose auto, causal"),
        ({"batch_size": "auto"}, "give one"),
        ({"batch_size": 0}, "at least 1"),
        ({"likelihood_samples": 0}, "at least 1"),
        ({"max_length": 1000}, "ends at 256"),
        ({"decoding": "nothing"}, "decoding"),
    ):
        with pytest.raises(UsageError, match=message):
            student(geometry, **settings)
    lm = student(geometry)
    with pytest.raises(ConfigError, match="temperature"):
        lm.generate_until([SimpleNamespace(args=("a", {"temperatur": 1}))])
    with pytest.raises(ContextLengthError, match="max_gen_toks"):
        lm.generate_until([SimpleNamespace(args=("a", {"max_gen_toks": 256}))])
    with pytest.raises(ContextLengthError, match="shorten"):
        lm.loglikelihood([SimpleNamespace(args=("a", "b" * 300))])


def test_the_command(folder, capsys, monkeypatch):
    """Without it the command could work from Python alone: parsing, registration and results are the harness's own."""
    from lm_eval.tasks import TaskManager

    own_tasks_alone = partialmethod(TaskManager.__init__, include_defaults=False)  # the others take long to index
    monkeypatch.setattr(TaskManager, "__init__", own_tasks_alone)
    lm = student(Geometry(4, "same", "block"))
    generation = GenerationSettings()
    save_checkpoint(lm.model, lm.lm.tokenizer, folder / "model", generation=generation, provenance={})
    before = list(sys.argv)
    words = ["--tasks", "choices,write", "--include_path", folder / "tasks", "--output_path", folder / "out.json"]
    assert call("lm-eval", "--model_args", f"pretrained={folder / 'model'},likelihood=sequential", *words) == 0
    assert sys.argv == before
    shown = capsys.readouterr().out
    assert "|choices" in shown
    assert "opdlm (" in shown
    written = json.loads(next(folder.glob("out*.json")).read_text())
    assert written["config"]["likelihood"] == "sequential"
    assert written["config"]["batch_size"] == 32
    task = ["--tasks", "choices", "--include_path", folder / "tasks"]
    assert "no folder" in fails(capsys, "lm-eval", "--tasks", "choices", "--include_path", folder / "nowhere")
    assert "--tasks" in fails(capsys, "lm-eval", "--model_args", "pretrained=x")
    assert "unknown flag --task_list" in fails(capsys, "lm-eval", "--task_list", "x")
    assert call("lm-eval", *task) == 2
    assert "error: no model is named" in capsys.readouterr().err
    assert call("lm-eval", "--model_args", f"pretrained={folder / 'nothing'}", *task) == 2
    assert "error: " in capsys.readouterr().err
    assert call("lm-eval", "--model_args", "pretrained=x", "--tasks", "choises", *task[2:]) == 2
    assert "error: Tasks not found: choises" in capsys.readouterr().err


def test_without_the_extra(capsys, monkeypatch):
    """Without it a missing package would end in a traceback."""
    monkeypatch.setitem(sys.modules, "lm_eval._cli", None)
    assert "pip install 'opdlm[lm-eval]'" in fails(capsys, "lm-eval", "--tasks", "x")
