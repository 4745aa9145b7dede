"""How a server listens, and how much it takes on."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from opdlm.config.base import Settings


def _list_from_text(value: Any) -> Any:
    """`a,b` as the short form of (a, b)."""
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


class ServeSettings(Settings):
    """How a server listens, and how much it takes on."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen at; 0.0.0.0 is all of them")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen at; 0 takes a free one")
    batch_size: int = Field(default=32, ge=1, le=2**16, description="texts that each model writes at once")
    queue_limit: int = Field(default=256, ge=0, description="texts of a model that may wait; a client beyond gets 429")
    timeout_s: float = Field(default=600.0, gt=0, description="seconds after which a request is given up")
    stop_timeout_s: float = Field(default=30.0, ge=0, description="seconds that open requests have when it stops")
    max_body_bytes: int = Field(default=4_000_000, ge=1, description="largest request; a larger one gets 413")
    api_key: str | None = Field(
        default=None,
        min_length=1,
        description="clients must send this key; OPDLM_API_KEY keeps it from view",
    )
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_list_from_text)] = Field(
        default=(), description="web pages that browsers may call it from, divided by commas; none otherwise"
    )
