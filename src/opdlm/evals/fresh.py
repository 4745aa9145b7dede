"""Problems made anew from a seed, which no model was trained on: from packages that generate them.

    gsm-symbolic[:LANGUAGE]   new names and numbers in GSM8K test problems; multilingual-gsm-symbolic (MIT; the idea:
                              arXiv 2410.05229). Graded as `maths`.
    reasoning-gym:DATA_SET    procedural problems of one kind; reasoning-gym (Apache-2.0, arXiv 2505.24760). Graded as
                              `tagged`.

Of reasoning-gym only data sets with one right answer are taken: some of its other scorers evaluate what the model wrote
as Python (parse_expr of sympy), in this process.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from random import Random
from typing import Any

from opdlm.errors import MissingExtraError, UsageError
from opdlm.evals.problem import Problem

_NUMBER = "End with #### and the number alone."
_TAGGED = "Give the final answer alone between <answer> and </answer>."
_EXTRA = "install it with: pip install 'opdlm[fresh]'"


def fresh_problems(name: str, count: int, seed: int = 0) -> list[Problem]:
    """`count` problems of a generator named above; the same ones for the same seed and version of its package.

    Raises:
        UsageError: there is no such generator or data set, or nothing is asked for.
        MissingExtraError: its package is not installed.
    """
    if count < 1:
        raise UsageError(f"{count} problems are asked for; ask for at least one")
    kind, _, part = name.partition(":")
    if kind not in GENERATORS:
        raise UsageError(
            f"there are no fresh problems {name!r}; choose {' or '.join(GENERATORS)}, with a part behind :"
        )
    return list(GENERATORS[kind](part, count, seed))


def _gsm_symbolic(language: str, count: int, seed: int) -> Iterator[Problem]:
    """Templates in turn, each with draws of its own."""
    try:
        from multilingual_gsm_symbolic import available_languages, load_data, load_replacements
    except ImportError as error:
        raise MissingExtraError(
            f"gsm-symbolic needs multilingual-gsm-symbolic, which needs Python 3.12 or newer; {_EXTRA}"
        ) from error
    language = language or "eng"
    if language not in (known := available_languages()):
        raise UsageError(f"gsm-symbolic has no language {language!r}; choose one of {', '.join(known)}")
    replacements = load_replacements(language)
    templates = load_data(language)[:count]
    for number, template in enumerate(templates):
        wanted = len(range(number, count, len(templates)))
        made = template.generate_questions(wanted, replacements, rng=Random(f"{seed} {number}"), verbose=False)
        for question in made:
            answer = question.answer.rpartition("####")[2].strip()
            prompt = f"{question.question.strip()} {_NUMBER}"
            yield Problem("maths", prompt, question.answer.strip(), answer, tag=f"gsm-symbolic:{language}")


def _reasoning_gym(data_set: str, count: int, seed: int) -> Iterator[Problem]:
    try:
        from reasoning_gym.dataset import ProceduralDataset
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise MissingExtraError(f"reasoning-gym is not installed; {_EXTRA}") from error
    known = sorted(name for name, (kind, _) in DATASETS.items() if _has_one_answer(kind, ProceduralDataset))
    if data_set not in known:
        near = get_close_matches(data_set, known, 1)
        hint = f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(known)}"
        raise UsageError(f"reasoning-gym has no data set {data_set!r} with one right answer; {hint}")
    made = create_dataset(data_set, size=count, seed=seed)
    for entry in (made[index] for index in range(count)):
        prompt, answer = f"{entry['question'].strip()}\n{_TAGGED}", str(entry["answer"]).strip()
        yield Problem("tagged", prompt, f"<answer>{answer}</answer>", answer, tag=f"reasoning-gym:{data_set}")


def _has_one_answer(kind: type, base: Any) -> bool:
    """Whether its scorer is the library's own comparison with the one answer."""
    return kind.score_answer is base.score_answer  # type: ignore[attr-defined]


GENERATORS = {"gsm-symbolic": _gsm_symbolic, "reasoning-gym": _reasoning_gym}
