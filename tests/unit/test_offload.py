"""AdamW with its moments in the CPU's memory: torch's numbers, wherever the parameters are."""

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlm.config import OptimiserSettings
from opdlm.distill.api import convert
from opdlm.distill.offload import OffloadedAdamW
from opdlm.distill.update import Updater
from opdlm.errors import ConfigError
from runs import PROMPTS, SETTINGS
from support import tiny_model, tiny_tokenizer


def updater(moments: Any) -> tuple[list[torch.nn.Parameter], Updater]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(8, 5)), torch.nn.Parameter(torch.randn(7))]
    settings = OptimiserSettings(learning_rate=0.01, weight_decay=0.1, warmup_updates=2, moments=moments)
    return parameters, Updater(parameters, settings, 12)


def train(parameters: list[torch.nn.Parameter], of: Updater, updates: range) -> None:
    for number in updates:
        numbers = torch.Generator().manual_seed(number)
        for parameter in parameters[number % 3 == 0 :]:  # now and then one has no gradient
            parameter.grad = torch.randn(parameter.shape, generator=numbers)
        of.update(1.0, [0])


def test_offloaded_moments_train_bit_for_bit_as_torchs_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the same run would end in other weights for where its moments lie, and a resumed one in others again."""
    # As on a GPU: what a step fetches is a copy.
    monkeypatch.setattr(torch.Tensor, "to", partialmethod(torch.Tensor.to, copy=True))
    plain, own = updater("float32"), updater("offload")
    assert isinstance(own[1].optimiser, OffloadedAdamW)
    for one in (plain, own):
        train(*one, range(8))
    cut = updater("offload")
    for parameter, there in zip(cut[0], own[0], strict=True):
        parameter.data.copy_(there.data)
    cut[1].restore(own[1].state())
    for one in (plain, own, cut):
        train(*one, range(8, 12))
    for expected, whole, resumed in zip(plain[0], own[0], cut[0], strict=True):
        assert torch.equal(expected, whole)
        assert torch.equal(expected, resumed)


def test_moments_stay_in_the_cpus_memory_where_the_parameters_are_elsewhere() -> None:
    """Else a resumed run would put all of them on the GPU, and end for want of memory."""
    elsewhere = torch.nn.Parameter(torch.empty(8, 5, device="meta"))
    optimiser = OffloadedAdamW([elsewhere])
    moments = {"exp_avg": torch.ones(8, 5), "exp_avg_sq": torch.full((8, 5), 2.0)}
    saved = {
        "state": {0: {"step": torch.tensor(3.0), **moments}},
        "param_groups": optimiser.state_dict()["param_groups"],
    }
    optimiser.load_state_dict(saved)
    found = optimiser.state[elsewhere]
    assert {one.device.type for one in found.values()} == {"cpu"}
    assert all(torch.equal(found[name], moment) for name, moment in moments.items())
    assert found["step"] == 3


def test_nothing_is_offloaded_from_a_cpu(tmp_path: Path) -> None:
    """Else a user would believe that memory is saved where there is only one."""
    tiny_model().save_pretrained(tmp_path / "ar_model")
    tiny_tokenizer().save_pretrained(tmp_path / "ar_model")
    settings = SETTINGS | {"optimiser": {**SETTINGS["optimiser"], "moments": "offload"}, "device": "cpu"}
    with pytest.raises(ConfigError, match=r"optimiser\.moments: offload .* runs on cpu; leave it out, or take 8bit"):
        convert(tmp_path / "ar_model", PROMPTS, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
