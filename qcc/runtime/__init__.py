"""Running artifacts: ``qcc.runtime.load(path).run({...})``. Needs numpy, pydantic and the backend's own runtime."""

from qcc.runtime.session import Session, load

__all__ = ["Session", "load"]
