"""The viewer of denoising: plain JavaScript and CSS, shared by the report and by web pages (docs/report.md)."""

from functools import cache
from importlib.resources import files


@cache
def script() -> str:
    """viewer.js, which defines the class `DenoisingViewer`; holds no `</script>`."""
    return _text("viewer.js")


@cache
def style() -> str:
    """viewer.css; every name in it begins with `dv-`."""
    return _text("viewer.css")


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
