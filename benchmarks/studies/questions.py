"""What is asked, as data: the arms, each a change of one base setting, and the questions that compare them.

The base setting is the recipe `demo` at block size 4, as it was when the studies were made (a recipe may change because
of a study; the study then still says what it compared). Arms and questions are in order of what they tell: if time
runs out, the first ones are the ones to have.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Values = dict[str, Any]

RATE = {"learning_rate": 7e-4, "final_learning_rate": 1e-5}
ROLLOUTS = 100
BASE: Values = {
    "block_size": 4,
    "prediction": "shifted",
    "context": "causal",
    "method": "opd",
    "states": "all",
    "prompts_per_rollout": 128,
    "rollouts": ROLLOUTS,
    "warm_start_rollouts": 0,
    "rollout_decoding": "dynamic:0.9",
    "rollout_temperature": 0.3,
    "rollout_batch": 32,
    "response_length": {"start": 64, "end": 64, "rollouts": 0},
    "divergence": "forward_kl",
    "rows_per_update": 32,
    "rows_per_micro_batch": 8,
    "optimiser": {**RATE, "warmup_updates": 20, "l2_sp": 15.0},
}


@dataclass(frozen=True)
class Arm:
    """One way to convert.

    Attributes:
        reason: why it is run, in one line.
        change: settings that differ from `BASE`; a group given in part keeps the base's other values.
        answers: with method `sft`, what to learn from: the teacher's, the problems' reference answers, these with a
            remark, or these in other words (`foreign.py`).
        stages: changes of conversions one after the other, each from the student before and with an equal share of
            the rollouts. The teacher stays the original AR model.
        turns: changes of the rollouts' settings that take turns, rollout by rollout.
        mask_fault: commits the published code's fault: see `mask_fault.py`.
        hindsight: weight of positions that hesitate: see `hindsight.py`. 1: none.
        train_only: parts of names of the parameters that train; none: all train.
        rate_of: the arm of which this is the same at another learning rate.
        budget_of: the arm of which this is the same with another number of rollouts.
    """

    reason: str
    change: Values = field(default_factory=dict)
    answers: Literal["teacher", "reference", "remarked", "foreign"] = "teacher"
    stages: tuple[Values, ...] = ({},)
    turns: tuple[Values, ...] = ({},)
    mask_fault: bool = False
    hindsight: float = 1.0
    train_only: tuple[str, ...] = ()
    rate_of: str = ""
    budget_of: str = ""


def _at_rate(times: float) -> Values:
    return {"optimiser": {name: float(f"{rate * times:.2g}") for name, rate in RATE.items()}}


_SFT: Values = {"method": "sft", "states": "random_mask"}
_KD: Values = {"method": "offpolicy_kd", "states": "random_mask"}
_TEXT: Values = {"method": "onpolicy_text", "states": "random_mask"}
_NO_PULL: Values = {"optimiser": {"l2_sp": 0.0}}
_SAME_BLOCK: Values = {"prediction": "same", "context": "block"}
_WARM: Values = {"warm_start_rollouts": ROLLOUTS // 5}
_PREFIX: Values = {"rollout_decoding": "prefix:0.9"}
_RAMP: Values = {"response_length": {"start": 8, "end": 64, "rollouts": 2 * ROLLOUTS // 5}}

ARMS: dict[str, Arm] = {
    # methods
    "opd": Arm("the base: the student's text at all the states that it visited"),
    "sft-teacher": Arm("cross-entropy on the teacher's text, random masks", _SFT),
    "sft-truth": Arm("cross-entropy on the reference answers, random masks", _SFT, answers="reference"),
    "offpolicy-kd": Arm("the teacher's text, random masks, KL: is it the text or the target?", _KD),
    "onpolicy-text": Arm("the student's text, random masks, KL: is it the text or the states?", _TEXT),
    "opd-one-state": Arm("one visited state a block: as many states as the controls have", {"states": "one_per_block"}),
    "sft-remarked": Arm("cross-entropy on the reference answers with a remark before or behind", _SFT, "remarked"),
    "sft-foreign": Arm("cross-entropy on right answers in words that the AR model would not choose", _SFT, "foreign"),
    "sft-foreign-high-rate": Arm(
        "sft with a rate that suits it", {**_SFT, **_at_rate(3)}, "foreign", rate_of="sft-foreign"
    ),
    "sft-foreign-no-pull": Arm("does L2-SP hold it back?", {**_SFT, **_NO_PULL}, "foreign"),
    "sft-truth-low-rate": Arm(
        "sft with a rate that suits it", {**_SFT, **_at_rate(1 / 3)}, "reference", rate_of="sft-truth"
    ),
    "sft-teacher-low-rate": Arm("sft with a rate that suits it", {**_SFT, **_at_rate(1 / 3)}, rate_of="sft-teacher"),
    "sft-teacher-high-rate": Arm("sft with a rate that suits it", {**_SFT, **_at_rate(3)}, rate_of="sft-teacher"),
    "sft-truth-high-rate": Arm(
        "sft with a rate that suits it", {**_SFT, **_at_rate(3)}, "reference", rate_of="sft-truth"
    ),
    "opd-low-rate": Arm("the same search for the method itself", _at_rate(1 / 3), rate_of="opd"),
    "opd-high-rate": Arm("the same search for the method itself", _at_rate(3), rate_of="opd"),
    "opd-bfloat16": Arm("matrix products in bfloat16 under autocast", {"precision": "bfloat16"}),
    "small-updates": Arm("four times as many updates, of 8 rows each", {"rows_per_update": 8}),
    "small-updates-low-rate": Arm(
        "with a rate that suits them", {"rows_per_update": 8, **_at_rate(1 / 2)}, rate_of="small-updates"
    ),
    # methods in the paper's geometry
    "same-block-sft-truth": Arm(
        "given text, where the student starts from nothing", {**_SFT, **_SAME_BLOCK}, answers="reference"
    ),
    "same-block-sft-teacher": Arm("the teacher's text there", {**_SFT, **_SAME_BLOCK}),
    "same-block-onpolicy-text": Arm("the student's text with random masks there", {**_TEXT, **_SAME_BLOCK}),
    "same-block-one-state": Arm("one visited state a block there", {**_SAME_BLOCK, "states": "one_per_block"}),
    # budget: each a whole run, so that the learning rate has come down at its end
    **{
        f"{name}-{rollouts}": Arm(
            f"`{name}` with {rollouts} rollouts", {**change, "rollouts": rollouts}, answers, budget_of=name
        )
        for rollouts in (12, 25, 50, 260)
        for name, change, answers in (
            ("opd", {}, "teacher"),
            ("sft-truth", _SFT, "reference"),
            ("sft-foreign", _SFT, "foreign"),
            ("sft-teacher", _SFT, "teacher"),
            ("opd-one-state", {"states": "one_per_block"}, "teacher"),
        )
    },
    # large budgets in the paper's geometry
    "same-block-warm-535": Arm(
        "`same-block-warm` with 535 rollouts",
        {**_SAME_BLOCK, "rollouts": 535, "warm_start_rollouts": 107},
        budget_of="same-block-warm",
    ),
    # the same without L2-SP: a student that has to move far is held back by it
    **{
        f"{name}-no-pull{suffix}": Arm(
            f"`{name}{suffix}` without L2-SP: nothing holds the student back",
            {**change, **_NO_PULL, "rollouts": rollouts, "warm_start_rollouts": rollouts // 5 if warm else 0},
            answers,
            budget_of=f"{name}-no-pull" if suffix else "",
        )
        for rollouts, suffix in ((ROLLOUTS, ""), (535, "-535"), (1600, "-1600"), (5350, "-5350"))
        for name, change, answers, warm in (
            ("same-block", _SAME_BLOCK, "teacher", False),
            ("same-block-warm", _SAME_BLOCK, "teacher", True),
            ("same-block-sft-truth", {**_SFT, **_SAME_BLOCK}, "reference", False),
        )
        if not (warm and rollouts == 5350)  # a warm start does not help there
    },
    # forgetting
    "opd-no-pull": Arm("does the student's own text alone keep facts?", _NO_PULL),
    "sft-truth-no-pull": Arm("what given text alone forgets", {**_SFT, **_NO_PULL}, answers="reference"),
    "offpolicy-kd-no-pull": Arm("what the teacher's text with its distributions forgets", {**_KD, **_NO_PULL}),
    "attention-only": Arm("facts are said to be kept in the other weights", train_only=("self_attn",)),
    "pull-60": Arm("stronger L2-SP", {"optimiser": {"l2_sp": 60.0}}),
    # rollouts
    "rollout-static": Arm("states of one token a step", {"rollout_decoding": "static"}),
    "rollout-dynamic-0.7": Arm("states of many tokens a step", {"rollout_decoding": "dynamic:0.7"}),
    "rollout-in-turn": Arm(
        "states of every speed: static, dynamic 0.9 and 0.7 in turn",
        turns=tuple({"rollout_decoding": kind} for kind in ("static", "dynamic:0.9", "dynamic:0.7")),
    ),
    "temperature-1": Arm("the paper's temperature: more varied text", {"rollout_temperature": 1.0}),
    "static-temperature-1": Arm("both", {"rollout_decoding": "static", "rollout_temperature": 1.0}),
    "warm-start": Arm("a fifth of the rollouts written by the teacher, with random masks", _WARM),
    "visited-and-random": Arm(
        "visited states and random masks in turn", turns=({}, {"method": "onpolicy_text", "states": "random_mask"})
    ),
    # left to right
    "prefix": Arm("states with all of their left context", _PREFIX),
    "sequential": Arm("such states, one token a step", {"rollout_decoding": "sequential"}),
    "prefix-8": Arm("the same, blocks of 8", {**_PREFIX, "block_size": 8}),
    "prefix-8-one-state": Arm("and one state a block", {**_PREFIX, "block_size": 8, "states": "one_per_block"}),
    "prefix-8-260": Arm("and 260 rollouts", {**_PREFIX, "block_size": 8, "rollouts": 260}),
    "sft-truth-8": Arm(
        "cross-entropy on the reference answers, random masks, blocks of 8", {**_SFT, "block_size": 8}, "reference"
    ),
    "prefix-16": Arm("the same, blocks of 16", {**_PREFIX, "block_size": 16}),
    # block size
    "block-16": Arm("large blocks from the start", {"block_size": 16}),
    "grown": Arm(
        "4, then 8, then 16, a third of the rollouts each", stages=tuple({"block_size": size} for size in (4, 8, 16))
    ),
    "block-16-fault": Arm("what the mask fault costs in large blocks", {"block_size": 16}, mask_fault=True),
    "block-32": Arm(
        "one block for a whole answer; half of the rollouts, one state a block",
        {"block_size": 32, "rollouts": ROLLOUTS // 2, "states": "one_per_block"},
    ),
    "block-8": Arm("between them", {"block_size": 8}),
    "block-4-fault": Arm("what the mask fault costs in small blocks", mask_fault=True),
    "block-2": Arm("the demo itself, with this budget", {"block_size": 2}),
    "same-block-16": Arm("large blocks in the paper's geometry", {**_SAME_BLOCK, "block_size": 16}),
    "same-block-16-fault": Arm("and the mask fault there", {**_SAME_BLOCK, "block_size": 16}, mask_fault=True),
    "same-block-fault": Arm("the mask fault in the paper's geometry and block size", _SAME_BLOCK, mask_fault=True),
    # start
    "same-block": Arm("the paper's geometry: token i at i, blocks of clean text see themselves", _SAME_BLOCK),
    "same-block-warm": Arm("the paper's geometry after a warm start", {**_SAME_BLOCK, **_WARM}),
    "shifted-block": Arm("the AR model's shift alone", {"context": "block"}),
    "same-causal": Arm("the AR model's causal context alone", {"prediction": "same"}),
    "same-block-ramp": Arm("the paper's geometry with short responses first", {**_SAME_BLOCK, **_RAMP}),
    "ramp": Arm("short responses first", _RAMP),
    "shifted-block-warm": Arm("the AR model's shift after a warm start", {"context": "block", **_WARM}),
    "same-causal-warm": Arm("the causal context after a warm start", {"prediction": "same", **_WARM}),
    # loss
    "reverse-kl": Arm("KL(student || teacher)", {"divergence": "reverse_kl"}),
    "jsd": Arm("between the two, and bounded", {"divergence": "jsd:0.5"}),
    "top-16": Arm("the teacher's 16 most probable tokens and a bucket for the rest", {"top_k": 16}),
    "top-16-no-rest": Arm("the published partial sum", {"top_k": 16, "rest_bucket": False}),
    "hindsight": Arm("positions whose proposal changes later weigh four times as much", hindsight=4.0),
    "no-clean": Arm("the base again: nothing holds the clean text"),
    **{
        f"clean-{weight:g}": Arm("the clean text is held too, with this weight", {"clean_weight": weight})
        for weight in (0.3, 1.0, 3.0)
    },
    "no-end": Arm("the end of the sequence not supervised, as published", {"supervise_end": False}),
}


@dataclass(frozen=True)
class Question:
    """A comparison of arms.

    Attributes:
        title: the question.
        arms: names, the most telling first.
        reference: the arm that costs and budgets are compared with.
        figure: "curves": accuracy against tokens trained. "speeds": accuracy against tokens per forward.
            "facts": the share of facts that are still known. "budgets": final accuracy against tokens trained.
            "orders": as "speeds", for both orders of decoding.
    """

    title: str
    arms: tuple[str, ...]
    reference: str
    figure: Literal["curves", "speeds", "facts", "budgets", "orders"]


_BUDGETED = ("opd", "sft-truth", "sft-foreign", "sft-teacher", "opd-one-state")
_METHODS = ("opd", "sft-teacher", "sft-truth", "offpolicy-kd", "onpolicy-text")
QUESTIONS: dict[str, Question] = {
    "method": Question(
        "What is the method worth against its controls?",
        (
            *_METHODS,
            *("opd-one-state", "sft-remarked", "sft-foreign", "sft-foreign-high-rate", "sft-foreign-no-pull"),
            *("sft-truth-low-rate", "sft-teacher-low-rate", "sft-teacher-high-rate", "sft-truth-high-rate"),
            *("opd-low-rate", "opd-high-rate", "small-updates", "small-updates-low-rate"),
        ),
        "sft-teacher",
        "curves",
    ),
    "geometry": Question(
        "Are the methods apart where the student has to learn the paper's geometry first?",
        (
            *("same-block", "same-block-sft-truth", "same-block-onpolicy-text", "same-block-one-state"),
            "same-block-sft-teacher",
        ),
        "same-block-sft-truth",
        "curves",
    ),
    "large": Question(
        "At which budget does the paper's geometry keep what the AR model knows, and with which method?",
        (
            *("same-block", "same-block-warm", "same-block-sft-truth", "same-block-warm-535"),
            *("same-block-no-pull", "same-block-warm-no-pull", "same-block-sft-truth-no-pull"),
            *("same-block-no-pull-535", "same-block-warm-no-pull-535", "same-block-sft-truth-no-pull-535"),
            *("same-block-no-pull-1600", "same-block-warm-no-pull-1600", "same-block-sft-truth-no-pull-1600"),
            *("same-block-no-pull-5350", "same-block-sft-truth-no-pull-5350"),
        ),
        "same-block-sft-truth-no-pull",
        "budgets",
    ),
    "gap": Question(
        "Which rollouts make a student that is good at every decoding speed?",
        (
            *_METHODS,
            *("rollout-static", "rollout-dynamic-0.7", "temperature-1", "rollout-in-turn", "opd-one-state"),
            *("warm-start", "visited-and-random", "static-temperature-1"),
        ),
        "opd",
        "speeds",
    ),
    "block": Question(
        "How large may a block be, does growing it help, and what does the published mask fault cost?",
        (
            *("opd", "block-16", "grown", "block-16-fault", "block-8", "block-4-fault", "block-2", "block-32"),
            *("same-block", "same-block-fault", "same-block-16", "same-block-16-fault"),
        ),
        "opd",
        "speeds",
    ),
    "order": Question(
        "Does it pay to fix a block's tokens from left to right, and to train on such states?",
        (
            *("opd", "prefix", "sequential", "sft-truth", "block-2", "block-8", "prefix-8", "block-16", "prefix-16"),
            *("prefix-8-260", "prefix-8-one-state", "sft-truth-8"),
        ),
        "opd",
        "orders",
    ),
    "start": Question(
        "What does the student need to start: the AR model's habits, a warm start, short responses?",
        (
            *("opd", "same-block", "same-block-warm", "shifted-block", "same-causal", "same-block-ramp"),
            *("warm-start", "ramp", "shifted-block-warm", "same-causal-warm"),
        ),
        "opd",
        "curves",
    ),
    "loss": Question(
        "Which divergence, over how many tokens, at how many states?",
        ("opd", "reverse-kl", "opd-one-state", "top-16", "top-16-no-rest", "jsd", "hindsight", "no-end"),
        "opd",
        "speeds",
    ),
    "precision": Question(
        "Does training with bfloat16 products cost accuracy?",
        ("opd", "opd-bfloat16"),
        "opd",
        "speeds",
    ),
    "clean": Question(
        "Does training on the clean text make the student a better reader of its own drafts?",
        ("no-clean", "clean-1", "clean-3", "clean-0.3"),
        "no-clean",
        "speeds",
    ),
    "budget": Question(
        "How many tokens does each method need?",
        (
            *_BUDGETED,
            *(f"{name}-{rollouts}" for rollouts in (25, 50, 12) for name in _BUDGETED),
            *(f"{name}-260" for name in _BUDGETED),
        ),
        "sft-truth",
        "budgets",
    ),
    "forgetting": Question(
        "Which method keeps the facts that no prompt names?",
        (
            *_METHODS,
            "opd-one-state",
            "opd-25",
            "opd-no-pull",
            "sft-truth-no-pull",
            "offpolicy-kd-no-pull",
            "pull-60",
            "attention-only",
        ),
        "opd",
        "facts",
    ),
}
