"""Reads validated values from JSON and YAML files."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from qcc.errors import ConfigError
from qcc.validation import explain

T = TypeVar("T", bound=BaseModel)


def read_document(kind: type[T], path: Path, longest: int | None = None) -> T:
    """The value of ``kind`` in a JSON or YAML file. Raises ConfigError, its reason cut at ``longest`` characters."""
    try:
        data = path.read_bytes()
        if path.suffix not in (".yaml", ".yml"):
            return kind.model_validate_json(data)
        return kind.model_validate(yaml.safe_load(data))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror or e}") from e
    except (yaml.YAMLError, RecursionError) as e:
        raise ConfigError(f"{path}: {' '.join(str(e).split())[:longest]}") from e
    except ValidationError as e:
        raise ConfigError(f"{path}: {explain(e)[:longest]}") from e
