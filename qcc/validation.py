"""What every validated value from outside (config, manifest, options) shares: strictness and one-line errors."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def explain(error: ValidationError) -> str:
    """A validation error in one line: ``field: reason; …``."""
    rows = (f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())
    return "; ".join(rows)
