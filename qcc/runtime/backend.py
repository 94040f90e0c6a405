"""The backend protocol: what runs a target's files. Plug-ins in the group ``qcc.backends``."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from qcc.artifact.manifest import Manifest
from qcc.discovery import discover, load
from qcc.errors import ConfigError, PluginError, QccError

BACKENDS: Final = "qcc.backends"
ALIGNMENT: Final = 64
"""Every array that a backend is given starts at a multiple of this many bytes, unless it says otherwise."""


class Backend(Protocol):
    """Runs integer arrays through a compiled graph.

    ``files`` maps the artifact's relative paths to files whose hashes have been checked; they
    stay in place as long as the backend lives. ``run`` may be called from several threads at once.
    Further keyword parameters of the constructor are options that ``qcc.runtime.load`` passes on.
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


def make_backend(
    manifest: Manifest,
    files: Mapping[str, Path],
    threads: int,
    options: Mapping[str, Any] | None = None,
    device: int | str | None = None,
) -> Backend:
    """The backend that ``manifest`` names, given further ``options`` by keyword.

    ``device`` is a number, which is one more option, or a name: ``simt`` asks for the backend ``cuda-simt`` in the
    place of ``cuda``. Raises PluginError when the backend is missing or fails to start, ConfigError for an option
    or device that it does not know.
    """
    name = manifest.backend
    given = dict(options or {})
    if isinstance(device, str):
        name = backend_on(name, device)
    elif device is not None:
        given["device"] = device
    factory: Any = load(BACKENDS, name)
    known = signature(factory).parameters
    if unknown := [option for option in given if option not in known]:
        raise ConfigError(f"the backend '{name}' takes no option '{unknown[0]}'")
    try:
        backend: Backend = factory(manifest, files, threads, **given)
    except QccError:
        raise
    except Exception as e:
        raise PluginError(f"backend '{name}' raised {type(e).__name__}: {e}") from e
    return backend


def backend_on(backend: str, device: str) -> str:
    """The backend that runs the files of ``backend`` on what is called ``device``. Raises ConfigError."""
    if device not in (known := named_devices(backend)):
        others = f"; others: {', '.join(known)}" if known else ""
        raise ConfigError(f"the backend '{backend}' knows no device '{device}': devices are numbered{others}")
    return f"{backend}-{device}"


def named_devices(backend: str) -> list[str]:
    """What stands for the devices of ``backend``, by name."""
    prefix = f"{backend}-"
    return [name.removeprefix(prefix) for name in discover(BACKENDS) if name.startswith(prefix)]
