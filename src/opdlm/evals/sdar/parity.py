"""The parity report of an SDAR folder: the same logits and the same tokens as opdlm, in every reading of the folder.

Shape letters: N states, S block size, V vocabulary.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

import opdlm
from opdlm.checkpoints.export_sdar import MASK_ID
from opdlm.config import DynamicDecoding, GenerationSettings
from opdlm.core.layout import CLEAN, Attention
from opdlm.errors import IdentityCheckError, UsageError
from opdlm.evals.sdar.cycle import Cycle
from opdlm.evals.sdar.reading import SdarReading
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import encode_prompt, special_tokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations

REPORT = "parity.json"
PROMPTS = ("What is 12 + 30?", "Write one sentence about the sea.", "Name three colours, and say which you like best.")
_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit: float32 sums in another order differ by less."""
_CHILD = Path(__file__).with_name("child.py")
_CHILD_STATES = 12
_CHILD_SECONDS = 3600.0


@dataclass(frozen=True)
class Agreement:
    """How one reading of the folder compares with opdlm.

    Attributes:
        reading: what read the folder. states: blocks of which the logits were compared.
        largest_difference, largest_logit: over all of their logits but the mask token's.
        same_choice: positions whose most probable token is the same, of `positions`.
        mask_probability: the largest that a reading gives to the mask token, which opdlm never writes.
        same_texts: responses with the same tokens, of `texts`.
    """

    reading: str
    states: int
    largest_difference: float
    largest_logit: float
    positions: int
    same_choice: int
    mask_probability: float
    texts: int
    same_texts: int

    @property
    def holds(self) -> bool:
        """Whether the folder may be served."""
        near = self.largest_difference <= _TOLERANCE * max(1.0, self.largest_logit)
        return near and self.same_texts == self.texts


@dataclass(frozen=True)
class SdarCode:
    """SDAR's own modelling file: a folder with modeling_sdar.py and configuration_sdar.py, and who runs it.

    Its code is run with the user's rights. `python`: one with torch and the transformers that the file fits.
    """

    folder: Path
    python: str = sys.executable


def check_parity(
    model: BlockDiffusionModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    threshold: float,
    code: SdarCode | None = None,
    prompts: Sequence[str] = PROMPTS,
    most: int = 24,
) -> list[Agreement]:
    """Compares, and writes parity.json into the folder. `model`: of the very weights that the folder has.

    Raises:
        IdentityCheckError: a reading differs; the report says where.
        UsageError: SDAR's file cannot be run.
    """
    tokens = special_tokens(model.model, tokenizer)
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    settings = GenerationSettings(decoding=DynamicDecoding(threshold=threshold), max_new_tokens=most)
    rollout = Engine(model, tokens).write(continuations(ids, settings))
    ends = zip(rollout.prompt_length.tolist(), rollout.length.tolist(), strict=True)
    ours = [rollout.input_ids[row, begin:end].tolist() for row, (begin, end) in enumerate(ends)]

    cycle = Cycle(model.geometry.block_size, MASK_ID, threshold, most, tokens.stop_token_ids)
    states: list[list[int]] = []
    logits: list[torch.Tensor] = []
    reading = SdarReading(folder)

    def logits_of(state: list[int]) -> torch.Tensor:
        states.append(state)
        logits.append(reading(state))
        return logits[-1]

    texts = [cycle.write(logits_of, prompt) for prompt in ids]
    found = [_compared("plain torch, as the engines read it", model, states, torch.stack(logits), ours, texts)]
    if code is not None:
        some = states[:: -(-len(states) // _CHILD_STATES)]
        theirs, their_texts = _by_sdar(code, folder, some, ids, cycle)
        found.append(_compared(f"modeling_sdar.py of {code.folder.name}", model, some, theirs, ours, their_texts))
    about = {"opdlm": opdlm.__version__, "format": "sdar", "threshold": threshold, "block_size": cycle.block_size}
    report = about | {"readings": [asdict(one) for one in found]}
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if wrong := next((one for one in found if not one.holds), None):
        raise IdentityCheckError(
            f"{wrong.reading}: logits of {folder} differ by up to {wrong.largest_difference:.3g}, and "
            f"{wrong.same_texts} of {wrong.texts} texts are the same; do not serve it, see {folder / REPORT} and "
            "report this model"
        )
    return found


@torch.inference_mode()
def _compared(
    reading: str,
    model: BlockDiffusionModel,
    states: Sequence[Sequence[int]],
    theirs: torch.Tensor,
    ours_written: Sequence[Sequence[int]],
    theirs_written: Sequence[Sequence[int]],
) -> Agreement:
    """`theirs`: [N, S, V] logits of the states."""
    ours = torch.stack([_logits(model, state) for state in states])
    chance = theirs.softmax(-1)[..., MASK_ID].max()
    kept = torch.ones(theirs.shape[-1], dtype=torch.bool)
    kept[[MASK_ID, model.mask_token_id]] = False
    difference = (ours - theirs)[..., kept].abs().max()
    pairs = zip(ours_written, theirs_written, strict=True)
    return Agreement(
        reading=reading,
        states=len(states),
        largest_difference=float(difference),
        largest_logit=float(theirs[..., kept].abs().max()),
        positions=ours.shape[0] * ours.shape[1],
        same_choice=int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
        mask_probability=float(chance),
        texts=len(ours_written),
        same_texts=sum(list(one) == list(other) for one, other in pairs),
    )


def _logits(model: BlockDiffusionModel, state: Sequence[int]) -> torch.Tensor:
    """[S, V] opdlm's logits of the last block of `state`, whose masks are the engines'."""
    size = model.geometry.block_size
    ids = torch.tensor([state]).masked_fill(torch.tensor([state]) == MASK_ID, model.mask_token_id)
    position = torch.arange(ids.shape[1])[None]
    stream = (position >= ids.shape[1] - size).long() + CLEAN
    hidden = model.hidden(ids, Attention.within(model.geometry, position, stream))
    return model.logits(hidden[0, -size:])


def _by_sdar(
    code: SdarCode, folder: Path, states: Sequence[list[int]], prompts: Sequence[list[int]], cycle: Cycle
) -> tuple[torch.Tensor, list[list[int]]]:
    """Logits [N, S, V] and texts of SDAR's own file, which runs in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        job = Path(place)
        about = asdict(cycle) | {"stops": list(cycle.stops)}
        request = {"folder": str(folder.resolve()), "code": str(code.folder.resolve()), "cycle": about}
        request |= {"states": list(states), "prompts": list(prompts)}
        (job / "job.json").write_text(json.dumps(request), encoding="utf-8")
        try:
            done = subprocess.run(
                [code.python, str(_CHILD), place], capture_output=True, text=True, timeout=_CHILD_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"{code.python} did not run SDAR's file ({error}); name another --sdar-python") from error
        if done.returncode != 0:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise UsageError(
                f"modeling_sdar.py of {code.folder} could not be run ({reason}); --sdar-python names a Python with "
                "torch, einops and the transformers that it was written for"
            )
        tokens = json.loads((job / "tokens.json").read_text(encoding="utf-8"))
        return load_file(job / "logits.safetensors")["logits"], tokens
