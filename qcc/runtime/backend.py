"""The backend protocol: what runs a target's files. Plug-ins in the group ``qcc.backends``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from qcc.artifact.manifest import Manifest
from qcc.discovery import load
from qcc.errors import PluginError, QccError

BACKENDS: Final = "qcc.backends"
ALIGNMENT: Final = 64
"""Every array that a backend is given starts at a multiple of this many bytes, unless it says otherwise."""


class Backend(Protocol):
    """Runs integer arrays through a compiled graph.

    ``files`` maps the artifact's relative paths to files whose hashes have been checked; they
    stay in place as long as the backend lives. ``run`` may be called from several threads at once.
    A backend may also have a method ``quantize(spec, array)``, its own ``quantize_input``, equal on
    every bit; ``direct(inputs, raw)``, which does all that ``Session.run`` does, or gives None to leave
    it to the session; and an attribute ``alignment``, the bytes to which it wants arrays aligned instead.
    """

    def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int) -> None: ...

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output, [batch, …], from codes of every input, [batch, …].

        Inputs have the manifest's element types, are C-contiguous and aligned.
        ``batch`` is at least 1, and 1 where the manifest's shapes have no batch axis.
        """
        ...


def make_backend(manifest: Manifest, files: Mapping[str, Path], threads: int) -> Backend:
    """The backend that ``manifest`` names. Raises PluginError when it is missing or fails to start."""
    factory: Any = load(BACKENDS, manifest.backend)
    try:
        backend: Backend = factory(manifest, files, threads)
    except QccError:
        raise
    except Exception as e:
        raise PluginError(f"backend '{manifest.backend}' raised {type(e).__name__}: {e}") from e
    return backend
