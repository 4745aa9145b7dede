"""Settings: short forms, mistakes that name their fix, and no torch."""

import json
import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from opdlm.config import (
    ConvertSettings,
    Decoding,
    DistillSettings,
    DynamicDecoding,
    EntropyDecoding,
    FactorDecoding,
    GeneralisedJSD,
    GenerationSettings,
    KlassDecoding,
    MixedKL,
    OptimiserSettings,
    PrefixDecoding,
    SequentialDecoding,
    Settings,
    StaticDecoding,
    as_text,
    settings_from,
)
from opdlm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("static", StaticDecoding()),
        ("static:2", StaticDecoding(tokens_per_step=2)),
        ("sequential:3", SequentialDecoding(tokens_per_step=3)),
        ("dynamic", DynamicDecoding(threshold=0.9)),
        ("dynamic:0.8", DynamicDecoding(threshold=0.8)),
        ({"kind": "dynamic", "threshold": 0.5}, DynamicDecoding(threshold=0.5)),
        ("prefix:0.95", PrefixDecoding(threshold=0.95)),
        ("factor", FactorDecoding(factor=1.0)),
        ("factor:0.6", FactorDecoding(factor=0.6)),
        ("entropy", EntropyDecoding(bound=0.1, by_confidence=False)),
        ("entropy:2", EntropyDecoding(bound=2.0)),
        ({"kind": "entropy", "by_confidence": True}, EntropyDecoding(bound=0.1, by_confidence=True)),
        ("klass", KlassDecoding(threshold=0.9, drift=0.01, history=2)),
        ("klass:0.6", KlassDecoding(threshold=0.6)),
    ],
)
def test_decoding_short_forms(text: object, expected: object) -> None:
    """Else `--decoding dynamic:0.8` would mean something else than its table in a file."""
    assert settings_from(GenerationSettings, {"decoding": text}).decoding == expected


@pytest.mark.parametrize("text", ["static:2", "prefix:0.95", "entropy:2.0", "klass:0.6"])
def test_short_forms_can_be_read_again(text: str) -> None:
    """Else a demo would name another decoding than its own."""
    assert as_text(settings_from(GenerationSettings, {"decoding": text}).decoding) == text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"logit_bias": "17:-5,23:2.5"}, {"logit_bias": {17: -5.0, 23: 2.5}}),
        ({"logit_bias": {"17": -5}}, {"logit_bias": {17: -5.0}}),  # as in a JSON file
        ({"stop_strings": "a, b"}, {"stop_strings": ("a, b",)}),
        ({"stop_strings": ["a", "b"], "min_p": "0.1"}, {"stop_strings": ("a", "b"), "min_p": 0.1}),
    ],
)
def test_generation_short_forms(given: dict, expected: dict) -> None:
    """Else a bias from the command line would be none, or one stop string would be one for each of its letters.

    As JSON, in which a checkpoint keeps them, they stay what they are.
    """
    settings = settings_from(GenerationSettings, given)
    assert settings.model_dump(include=set(expected)) == expected
    assert settings == GenerationSettings().model_copy(update=expected)
    assert settings_from(GenerationSettings, json.loads(settings.model_dump_json())) == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decoding": "factor:0"}, "greater than 0"),
        ({"decoding": "entropy:-1"}, "greater than or equal to 0"),
        ({"decoding": "klass:1.1"}, "less than or equal to 1"),
        ({"decoding": {"kind": "klass", "history": 0}}, "greater than or equal to 1"),
        ({"decoding": {"kind": "entropy", "threshold": 1}}, "unknown setting 'decoding.threshold'"),
        ({"min_p": 2}, "less than or equal to 1"),
        ({"repetition_penalty": 0}, "greater than 0"),
        ({"logit_bias": "17"}, "logit_bias.17"),
        ({"logit_bias": "a:1"}, "logit_bias.a"),
        ({"logit_bias": "3:inf"}, "finite"),
    ],
)
def test_mistakes_in_generation_are_named(given: dict, message: str) -> None:
    """Else a rule that can never fix two tokens, or a bias on no token, would be accepted in silence."""
    with pytest.raises(ConfigError) as caught:
        settings_from(GenerationSettings, given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("jsd:0.3", GeneralisedJSD(beta=0.3)), ("mixed_kl:0.25", MixedKL(reverse_weight=0.25)), ("jsd", GeneralisedJSD())],
)
def test_divergence_short_forms(text: str, expected: object) -> None:
    """Else a weight given on the command line would be lost."""
    assert settings_from(DistillSettings, {"divergence": text}).divergence == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"blocksize": 4}, "unknown setting 'blocksize'; did you mean 'block_size'"),
        ({"zzz": 1}, "unknown setting 'zzz'; known are "),
        ({"optimiser": {"learning_rat": 1}}, "'optimiser.learning_rat'; did you mean 'optimiser.learning_rate'"),
        ({"response_length": {"shape": "cosin"}}, "response_length.shape"),
        ({"rollout_decoding": {"kind": "dynamic", "treshold": 1}}, "did you mean 'rollout_decoding.threshold'"),
        ({"block_size": 0}, "block_size: Input should be greater than or equal to 1"),
        ({"rollout_decoding": "dynamic:2"}, "less than or equal to 1"),
        ({"rollout_decoding": "fast"}, "'static', 'sequential', 'dynamic'"),
        ({"rollout_decoding": "static:0.5"}, "rollout_decoding"),
        ({"divergence": "forward_kl:0.5"}, "divergence"),
        ({"divergence": "jsd:1"}, "less than 1"),
        ({"method": "sft", "states": "all"}, "random masks"),
        ({"method": "sft", "states": "random_mask", "clean_weight": 1}, "method 'sft' has no clean_weight"),
        ({"clean_weight": 1}, "clean_weight needs prediction shifted and context causal"),
        ({"rows_per_update": 9, "prompts_per_rollout": 8}, "set rows_per_update to"),
        ({"top_k": 0}, "top_k"),
        ({"rollout_batch": 10**9}, "rollout_batch: Input should be less than"),
        ({"prompts_per_rollout": 10**9}, "prompts_per_rollout: Input should be less than"),
        ({"rows_per_update": 10**9}, "rows_per_update: Input should be less than"),
        ({"rows_per_micro_batch": 10**9}, "rows_per_micro_batch: Input should be less than"),
        ({"optimiser": {"learning_rate": 1e30}}, "optimiser.learning_rate: Input should be less than or equal to 1"),
        (
            {"optimiser": {"learning_rate": 0.5, "weight_decay": 3}},
            "weight_decay 3 at this learning rate takes back",
        ),
        ({"optimiser": {"learning_rate": 1e-3, "l2_sp": 1e4}}, "lower either"),
        ({"prediction": "next"}, "prediction"),
    ],
)
def test_mistakes_are_named_in_one_line(values: dict, message: str) -> None:
    """Else a misspelt key would be ignored, and the run would train with the default that it was to replace."""
    with pytest.raises(ConfigError) as caught:
        settings_from(DistillSettings, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


CHOICES = get_args(get_args(Decoding)[0])
FLOATS = [
    (kind, name)
    for kind in (DistillSettings, OptimiserSettings, GenerationSettings, MixedKL, GeneralisedJSD, *CHOICES)
    for name, field in kind.model_fields.items()
    if field.annotation is float
]


@pytest.mark.parametrize(("kind", "name"), FLOATS, ids=lambda part: getattr(part, "__name__", part))
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), "nan"])
def test_numbers_are_finite(kind: type[Settings], name: str, value: object) -> None:
    """Else an infinite rate or decay would train, and leave a model of NaN."""
    with pytest.raises(ConfigError, match=f"setting {name}: .*(finite|less than|greater than)"):
        settings_from(kind, {name: value})


def test_defaults_are_the_papers() -> None:
    """Else "the paper's settings" would be a claim that no run makes (Tables 13 and 14, and the launchers)."""
    s = DistillSettings()
    assert (s.block_size, s.prediction, s.context, s.method, s.states) == (4, "same", "block", "opd", "one_per_block")
    assert (s.prompts_per_rollout, s.rows_per_update, s.rollout_temperature) == (128, 8, 1.0)
    assert s.rollout_decoding == DynamicDecoding(threshold=0.9)
    assert (s.response_length.start, s.response_length.end, s.response_length.rollouts) == (100, 4000, 100)
    o = s.optimiser
    assert (o.learning_rate, o.final_learning_rate, o.warmup_updates, o.weight_decay) == (1e-5, 1e-6, 5, 0)
    assert (o.beta1, o.beta2, o.clip_norm) == (0.9, 0.999, 1.0)


def test_settings_cannot_change() -> None:
    """Else the saved config of a run might not be the one that it ran with."""
    with pytest.raises(ValidationError):
        DistillSettings().block_size = 8  # type: ignore[misc]


def test_settings_survive_a_file() -> None:
    """Else a resumed run would have other settings than the run that it continues."""
    import tomllib

    import tomli_w

    settings = ConvertSettings(model="m", divergence="jsd:0.3", top_k=16, rollout_decoding="static:2")  # type: ignore[arg-type]
    text = tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))
    assert settings_from(ConvertSettings, tomllib.loads(text)) == settings


def test_settings_need_no_torch() -> None:
    """Else `--help` and every configuration error would wait seconds for torch."""
    code = "import sys, opdlm.config; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_divergence_that_takes_no_number() -> None:
    """Else the message would speak of a setting of another divergence."""
    with pytest.raises(ConfigError, match="forward_kl takes no number"):
        settings_from(DistillSettings, {"divergence": "forward_kl:0.5"})
