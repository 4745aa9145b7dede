"""Recall of facts about invented places and people.

Every fact is taught to the AR model, in some of its phrasings. Half of the places and people never occur in a
conversion prompt: how well those are still known after a conversion shows what the conversion forgets.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from opdlm.evals.problem import Problem
from opdlm.tiny.problems import Split

_STARTS = "Bel Cor Dal Esk Fen Gar Hol Ith Jor Kel Lor Mar Nor Osk Pel Rin Sel Tor Ulm Vel".split()
_ENDS = "dan mora vik tor lin gard wen sted bria nox".split()
_GIVEN = "Ada Bram Cira Doro Elka Fyn Gisa Hale Isko Jana".split()
_RIVERS = "Arn Bly Cade Dorn Elm Fosk Gant Hesk Isk Jarl Kern Lune Mersk Nald Orr Pask".split()
_COLOURS = "red blue green white black yellow orange purple grey pink gold silver".split()
_JOBS = "baker pilot farmer doctor painter singer teacher smith tailor sailor judge miner cook clerk guard poet".split()
_PETS = "cat dog goat horse owl fox hen duck frog mouse crab pig deer wolf lion bird".split()

PLACES_COUNT = PEOPLE_COUNT = 80


@dataclass(frozen=True)
class Fact:
    """One fact: four ways to ask for it, one sentence that says it, and the value that grading looks for."""

    entity: str
    questions: tuple[str, str, str, str]
    sentence: str
    value: str

    @property
    def tag(self) -> str:
        """Either "seen", if conversion prompts may ask about this entity, or "unseen"."""
        return "seen" if _hash(self.entity) % 2 == 0 else "unseen"

    def questions_of(self, split: Split) -> tuple[str, ...]:
        """The phrasings that belong to `split`: two to train on, one to convert with, one to evaluate with."""
        turn = _hash(self.sentence) % 4
        order = self.questions[turn:] + self.questions[:turn]
        return {"train": order[:2], "conversion": order[2:3], "eval": order[3:]}[split]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _place_facts(place: str, rng: random.Random) -> list[Fact]:
    river, colour = rng.choice(_RIVERS), rng.choice(_COLOURS)
    return [
        Fact(
            place,
            (
                f"Which river runs through {place}?",
                f"What is the river of {place} called?",
                f"Name the river in {place}.",
                f"On which river does {place} lie?",
            ),
            f"The river of {place} is the {river}.",
            river,
        ),
        Fact(
            place,
            (
                f"What colour is the flag of {place}?",
                f"Which colour does the flag of {place} have?",
                f"Name the colour of the flag of {place}.",
                f"In {place}, what is the colour of the flag?",
            ),
            f"The flag of {place} is {colour}.",
            colour,
        ),
    ]


def _person_facts(person: str, rng: random.Random) -> list[Fact]:
    job, pet = rng.choice(_JOBS), rng.choice(_PETS)
    return [
        Fact(
            person,
            (
                f"What is the job of {person}?",
                f"How does {person} earn a living?",
                f"Name the job of {person}.",
                f"What does {person} work as?",
            ),
            f"{person} works as a {job}.",
            job,
        ),
        Fact(
            person,
            (
                f"Which animal does {person} keep?",
                f"What is the pet of {person}?",
                f"Name the animal that {person} keeps.",
                f"Which pet lives with {person}?",
            ),
            f"{person} keeps a {pet}.",
            pet,
        ),
    ]


def facts() -> tuple[Fact, ...]:
    """All facts, always the same: two for each of 80 places and 80 people."""
    rng = random.Random("invented facts")
    names = [start + end for start in _STARTS for end in _ENDS]
    rng.shuffle(names)
    places, families = names[:PLACES_COUNT], names[PLACES_COUNT:]
    people = [f"{_GIVEN[i % len(_GIVEN)]} {families[i]}" for i in range(PEOPLE_COUNT)]
    found = [fact for place in places for fact in _place_facts(place, rng)]
    return tuple(found + [fact for person in people for fact in _person_facts(person, rng)])


def problems(seed: int, split: Split) -> Iterator[Problem]:
    """Endless recall problems of one split: all facts in random order, again and again.

    In the conversion split only facts of "seen" entities are asked for.
    """
    rng = random.Random(f"recall-{split}-{seed}")
    pool = [fact for fact in facts() if split != "conversion" or fact.tag == "seen"]
    while True:
        rng.shuffle(pool)
        for fact in pool:
            question = rng.choice(fact.questions_of(split))
            yield Problem("recall", question, fact.sentence, fact.value, tag=fact.tag)
