"""What is written beside the training is the moment at which it was asked for, and no failure is lost."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from lossless import drafting
from opdlm.distill.saving import Writer, checkpoint_bytes, copied
from opdlm.models import devices
from opdlm.models.adapter import add_adapter
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.snapshot import snapshot
from rollouts import fresh_student


def adapted() -> BlockDiffusionModel:
    model = fresh_student()
    add_adapter(model.model, 2)
    return model


@pytest.mark.parametrize("made", [fresh_student, adapted, drafting])
def test_a_snapshot_stays_as_it_is(made: Callable[[], BlockDiffusionModel]) -> None:
    """Else a checkpoint would hold weights of later updates; and what never changes must not be copied."""
    model = made()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    still = snapshot(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    found = still.state_dict()
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], value) for name, value in before.items())
    pairs = list(zip(model.parameters(), still.parameters(), strict=True))
    assert all((ours is theirs) == (not ours.requires_grad) for ours, theirs in pairs)
    assert any(ours.requires_grad for ours, _ in pairs)


def test_copied_states_are_of_the_moment() -> None:
    """Else AdamW's moments in a checkpoint would be those of later updates."""
    tensor = torch.ones(2)
    state = {"a": [tensor, (tensor, "text")], "b": {"c": tensor}, "d": None}
    made = copied(state)
    tensor.add_(1)
    assert made["a"][0].tolist() == made["a"][1][0].tolist() == made["b"]["c"].tolist() == [1, 1]
    assert (made["a"][1][1], made["d"]) == ("text", None)


def test_the_size_of_a_checkpoint() -> None:
    """Else what is said before a run would not be what it needs: weights and two moments, of what trains alone."""
    full = fresh_student()
    assert checkpoint_bytes(full) == 12 * sum(p.numel() for p in full.parameters())
    gate = drafting()
    assert checkpoint_bytes(gate) == 16 * sum(p.numel() for p in gate.gate.parameters())


def test_room_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a copy would be made although the next update, which takes as much as the largest before, needs its room."""
    monkeypatch.setattr(devices, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(devices, "peak_process_bytes", lambda: 0)
    assert devices.room_for(10**9)
    assert not devices.room_for(10**9 + 1)
    monkeypatch.setattr(devices, "peak_process_bytes", lambda: 10**12)
    assert not devices.room_for(1)


def test_one_write_at_a_time() -> None:
    """Else two threads would write, and hold copies, at once; or a run would end before its last checkpoint."""
    writer, done, gate = Writer(), [], threading.Event()
    writer.begin(lambda: gate.wait(5) and done.append(1))
    assert done == [], "training goes on meanwhile"
    threading.Timer(0.05, gate.set).start()
    writer.begin(lambda: time.sleep(0.05) or done.append(2))
    assert done == [1]
    writer.wait()
    assert done == [1, 2]
    writer.wait()


def test_an_error_is_raised_once_where_training_asks() -> None:
    """Else a full disk would go unnoticed until the run is over, or be told twice."""
    writer = Writer()

    def full() -> None:
        raise OSError("full")

    writer.begin(full)
    with pytest.raises(OSError, match="full"):
        writer.wait()
    writer.check()
    writer.begin(full)
    with pytest.raises(OSError, match="full"):
        writer.begin(lambda: None)
