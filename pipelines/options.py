"""The kinds of values that a mixture's keys take."""

from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """YAML reads `yes` as true, and Python counts true as 1; no person means that."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not yes or no")
    return value


def _exact(value: Any) -> Any:
    """Weights are decimal numbers a person wrote: 0.1 means one tenth, not its float."""
    return Fraction(str(value)) if isinstance(_number(value), int | float) else value


Names = Annotated[list[str], BeforeValidator(_as_list)]
Paths = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Weight = Annotated[Fraction, BeforeValidator(_exact), Field(gt=0)]
Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Share = Annotated[Real, Field(ge=0, le=1)]


Token = bool | int | str
"""A token of a vocabulary by its text or id, or whether there is one at all."""


class Frozen(BaseModel):
    """Immutable, and strict about keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
