"""From the arms' files to numbers: spans over seeds, costs to reach a share of the teacher, the best learning rate."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.arm import definition
from studies.exam import ON_THE_WAY, Result
from studies.questions import ARMS, QUESTIONS
from studies.record import Effort

Record = dict[str, Any]
"""What the file of a run holds."""
Measure = Callable[[Result], float]
"""A number of an examination: accuracy, speed, or a family's share."""
Cost = Callable[[Record], float | None]
"""A number of a run; None where it does not exist."""


@dataclass(frozen=True)
class Span:
    """Mean, smallest and largest of a number over seeds; `n` seeds have it, of `of`."""

    mean: float
    low: float
    high: float
    n: int
    of: int


def span(values: Sequence[float | None]) -> Span | None:
    """None where no seed has the number."""
    found = [value for value in values if value is not None]
    return Span(fmean(found), min(found), max(found), len(found), len(values)) if found else None


@dataclass(frozen=True)
class Answers:
    """All runs of one question: arm -> seed -> record, in the question's order."""

    key: str
    arms: dict[str, dict[int, Record]]

    @classmethod
    def load(cls, key: str, folder: Path) -> "Answers":
        """What has been run so far. SystemExit if that is nothing, or if the runs cannot be compared."""
        arms: dict[str, dict[int, Record]] = {}
        for name in QUESTIONS[key].arms:
            paths = sorted(folder.glob(f"{name}-seed*.json"))
            records = [json.loads(path.read_text("utf-8")) for path in paths]
            for record in records:
                seed = record["definition"]["seed"]
                if record["definition"] != definition(name, seed, Effort(**effort_of(record))):
                    raise SystemExit(f"{name} with seed {seed} was run with other settings than now; run it again")
                arms.setdefault(name, {})[seed] = record
        if not arms:
            raise SystemExit(f"{folder} holds no runs for {key}; see the command `run`")
        efforts = {tuple(effort_of(record).values()) for seeds in arms.values() for record in seeds.values()}
        if len(efforts) != 1:
            raise SystemExit(f"{folder} holds runs of {len(efforts)} scales or numbers of questions; one is needed")
        return cls(key, arms)

    @property
    def any(self) -> Record:
        """One of the records, for what is the same in all."""
        return next(record for seeds in self.arms.values() for record in seeds.values())

    # --- examinations ---------------------------------------------------------------------------------------------

    def student(self, name: str, decoding: str, measure: Measure) -> Span:
        """Of the arm's students that were examined so, in the final examination."""
        records = self.arms[name].values()
        found = span([measure(record["final"][decoding]) for record in records if decoding in record["final"]])
        assert found is not None, f"{name} was not examined by {decoding}"
        return found

    def speed_at(self, name: str, decodings: Sequence[str], aim: float) -> float | None:
        """Tokens per forward at an accuracy, between decodings, of the seeds that were examined by all of them."""
        records = [r for r in self.arms[name].values() if all(kind in r["final"] for kind in decodings)]
        if not records:
            return None
        points = [[fmean(f(r["final"][kind]) for r in records) for f in (speed, accuracy)] for kind in decodings]
        for (slow, high), (fast, low) in itertools.pairwise(points):
            if low <= aim <= high:
                return slow + (fast - slow) * (high - aim) / (high - low)
        return None

    def examined(self, name: str, decodings: Sequence[str]) -> list[str]:
        """Those of the decodings by which at least one student of the arm was examined."""
        records = self.arms[name].values()
        return [decoding for decoding in decodings if any(decoding in record["final"] for record in records)]

    def teacher(self, measure: Measure) -> float:
        """Of the AR model, in the final examination: the same for all."""
        return measure(self.any["teacher"]["final"])

    # --- costs ----------------------------------------------------------------------------------------------------

    @property
    def rival(self) -> str:
        """The arm that costs are compared with."""
        return self.best_rate(QUESTIONS[self.key].reference)

    def cost(self, name: str, cost: Cost) -> Span | None:
        return span([cost(record) for record in self.arms.get(name, {}).values()])

    def relative(self, name: str, cost: Cost) -> Span | None:
        """The arm's cost over the rival's, seed by seed."""
        ours, theirs = self.arms[name], self.arms.get(self.rival, {})
        pairs = [(cost(ours[seed]), cost(theirs[seed])) for seed in ours if seed in theirs]
        return span([a / b if a is not None and b else None for a, b in pairs])

    # --- budgets --------------------------------------------------------------------------------------------------

    def budgets(self, name: str) -> list[str]:
        """The arm and those that differ from it in the number of rollouts only, the smallest first."""
        runs = [arm for arm in self.arms if arm == name or ARMS[arm].budget_of == name]
        return sorted(runs, key=self.tokens)

    def budgeted(self) -> list[str]:
        """Arms that were run with several budgets."""
        return [arm for arm in self.arms if not ARMS[arm].budget_of and len(self.budgets(arm)) > 1]

    def enough(self, name: str, decoding: str, share: float, unit: str = "tokens_trained") -> float | None:
        """Tokens, or another cost, of a whole run that keeps `share` of the accuracy; between runs on a log scale.

        None: no run reaches it. What the smallest run costs, where that one does: an upper bound.
        """
        aim = share * self.teacher(accuracy)
        before: tuple[float, float] | None = None
        for run in self.budgets(name):
            tokens, reached = math.log(self.tokens(run, unit)), self.student(run, decoding, accuracy).mean
            if reached >= aim:
                if before is None:
                    return math.exp(tokens)
                return math.exp(before[0] + (tokens - before[0]) * (aim - before[1]) / (reached - before[1]))
            before = tokens, reached
        return None

    def tokens(self, run: str, unit: str = "tokens_trained") -> float:
        """Response tokens that the arm trained on, or another cost."""
        found = self.cost(run, total(unit))
        assert found is not None
        return found.mean

    # --- learning rates -------------------------------------------------------------------------------------------

    def candidates(self, name: str) -> dict[str, float]:
        """The arm and those that differ from it in the learning rate only, with their validation accuracy.

        That is the mean at the end of training, over decodings and over the seeds that all of them have.
        """
        names = [arm for arm in self.arms if arm == name or ARMS[arm].rate_of == name]
        seeds = set.intersection(*(set(self.arms[arm]) for arm in names)) if names else set()
        return {arm: fmean(_validation(self.arms[arm][seed]) for seed in seeds) for arm in names if seeds}

    def best_rate(self, name: str) -> str:
        """Of the candidates the one that validates best."""
        scores = self.candidates(name)
        return max(scores, key=scores.__getitem__) if scores else name

    def leading(self) -> list[str]:
        """Every arm, but of each set of learning rates only the best."""
        return [arm for arm in self.arms if self.best_rate(ARMS[arm].rate_of or arm) == arm]


def effort_of(record: Record) -> dict[str, Any]:
    """Scale and number of questions."""
    return {name: record["definition"][name] for name in ("scale", "per_family")}


def _validation(record: Record) -> float:
    end = record["curve"][-1]["results"]
    return fmean(end[decoding]["accuracy"] for decoding in ON_THE_WAY)


# --- measures and costs -------------------------------------------------------------------------------------------


def accuracy(result: Result) -> float:
    """Mean over families."""
    return result["accuracy"]


def speed(result: Result) -> float:
    """Tokens per forward."""
    return result["tokens_per_forward"]


def share_of(label: str) -> Measure:
    """Accuracy in a family ("maths"), or in one tag of it ("recall unseen")."""

    def measure(result: Result) -> float:
        right, asked = result["counts"][label]
        return right / asked

    return measure


def total(unit: str) -> Cost:
    """Of the whole run."""
    return lambda record: record["curve"][-1][unit]


def to_reach(share: float, decoding: str, unit: str) -> Cost:
    """What it cost until the validation accuracy was `share` of the teacher's; None: it never was.

    Between two examinations the accuracy is taken to grow evenly; the first crossing counts.
    """

    def cost(record: Record) -> float | None:
        aim = share * record["teacher"]["validation"]["accuracy"]
        spent, reached = 0.0, 0.0
        for point in record["curve"]:
            now, result = point.get(unit, 0.0), point["results"][decoding]["accuracy"]
            if result >= aim:
                return spent + (now - spent) * (aim - reached) / (result - reached)
            spent, reached = now, result
        return None

    return cost
