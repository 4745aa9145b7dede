"""What all records share: immutable values with a version, to and from JSON."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from opdlm.errors import RecordError


class Part(BaseModel):
    """Part of a record. What a reader does not know it ignores: derived numbers, and what later versions add."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Record(Part):
    """One record. Files of a version before the first say none, and have the same fields."""

    version: Literal[1] = 1

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Any, where: str) -> Self:
        """The record that `to_json` wrote. Raises RecordError, with the place `where` the data come from."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "all of it"
            raise RecordError(
                f"{where} is not a {cls.__name__} of version 1 ({field}: {first['msg']}); "
                "it is damaged or another version of opdlm wrote it: write it again with this one"
            ) from error
