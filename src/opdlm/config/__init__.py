"""Every setting, written once: its type, default, unit and meaning.

Never imports torch, so that `--help` and configuration errors are instant. Unknown keys are errors. Defaults are the
paper's (arXiv 2606.06712, Tables 13 and 14, and its launchers where the two differ).
"""

from opdlm.config.base import Settings, settings_from
from opdlm.config.decoding import (
    LOSSLESS,
    CheckedDecoding,
    Decoding,
    DynamicDecoding,
    EntropyDecoding,
    FactorDecoding,
    KlassDecoding,
    PrefixDecoding,
    SequentialDecoding,
    StaticDecoding,
    TypicalDecoding,
    VerifiedDecoding,
    as_text,
)
from opdlm.config.distill import ConvertSettings, DistillSettings, LengthRamp, OptimiserSettings
from opdlm.config.divergence import ForwardKL, GeneralisedJSD, MixedKL, ReverseKL, TotalVariation
from opdlm.config.generation import CONSTRAINTS, GenerationSettings
from opdlm.config.resuming import CHANGEABLE, changed, refused
from opdlm.config.serve import ServeSettings

__all__ = [
    "CHANGEABLE",
    "CONSTRAINTS",
    "LOSSLESS",
    "CheckedDecoding",
    "ConvertSettings",
    "Decoding",
    "DistillSettings",
    "DynamicDecoding",
    "EntropyDecoding",
    "FactorDecoding",
    "ForwardKL",
    "GeneralisedJSD",
    "GenerationSettings",
    "KlassDecoding",
    "LengthRamp",
    "MixedKL",
    "OptimiserSettings",
    "PrefixDecoding",
    "ReverseKL",
    "SequentialDecoding",
    "ServeSettings",
    "Settings",
    "StaticDecoding",
    "TotalVariation",
    "TypicalDecoding",
    "VerifiedDecoding",
    "as_text",
    "changed",
    "refused",
    "settings_from",
]
