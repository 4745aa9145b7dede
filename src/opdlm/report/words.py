"""Numbers as a report writes them, with their units."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def amount(value: float, unit: str = "") -> str:
    """Three digits and an SI prefix: 1234567 -> "1.23 M"."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = f"{value:.3g}"
    return f"{digits} {_PREFIXES[power]}{unit}".rstrip()


def short(text: str, most: int = 26) -> str:
    """A name that fits beside an axis: a long one loses its middle."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """ "45 s", "3 min 20 s", "2 h 5 min", "1 d 4 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    shown = [f"{value} {unit}" for value, unit in parts if value]
    return " ".join(shown[:2])


def percent(share: float) -> str:
    """One digit behind the point: 0.9532 -> "95.3 %"."""
    return f"{100 * share:.1f} %"


def interval(bounds: tuple[float, float]) -> str:
    """ "91 % to 97 %"."""
    low, high = bounds
    return f"{100 * low:.0f} % to {100 * high:.0f} %"
