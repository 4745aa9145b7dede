"""The page at `/`: its files, and what a browser may do with it."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from opdlm import viewer
from opdlm.serve.failures import ApiError

_HEADERS = {
    # Nothing from elsewhere, nothing inline: a text of a model could do nothing even if it became HTML.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def playground() -> APIRouter:
    """`/` and `/page/NAME`. Open to all: they hold no answers, and the page asks for the key where there is one."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        return _sent("index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in _contents():
            raise ApiError(404, f"there is nothing at /page/{name}")
        return _sent(name)

    return router


@cache
def _contents() -> dict[str, str]:
    """Name -> text."""
    own = {file.name: file.read_text("utf-8") for file in (files("opdlm.serve") / "page").iterdir()}
    return {**own, "viewer.js": viewer.script(), "viewer.css": viewer.style()}


def _sent(name: str) -> Response:
    return Response(_contents()[name], media_type=_TYPES[name.rpartition(".")[2]], headers=_HEADERS)
