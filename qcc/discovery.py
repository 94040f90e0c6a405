"""Plug-in discovery through entry points, by name and group; knows no protocol and imports nothing of qcc's."""

from importlib.metadata import EntryPoint, entry_points

from qcc.errors import PluginError


def discover(group: str) -> dict[str, EntryPoint]:
    """Entry points of ``group`` by name. Raises PluginError when two distributions share a name."""
    found: dict[str, EntryPoint] = {}
    for ep in sorted(entry_points(group=group), key=lambda e: (e.name, owner(e))):
        if ep.name in found and ep != found[ep.name]:
            raise PluginError(f"{group}: '{ep.name}' is provided by {owner(found[ep.name])} and {owner(ep)}")
        found[ep.name] = ep
    return found


def load(group: str, name: str) -> object:
    """The object behind an entry point. Raises PluginError when it is missing or does not import."""
    known = discover(group)
    if name not in known:
        raise PluginError(f"{group}: no '{name}'; installed: {', '.join(known) or 'none'}")
    try:
        return known[name].load()
    except Exception as e:
        raise PluginError(f"{group}: '{name}' of {owner(known[name])} does not load: {type(e).__name__}: {e}") from e


def owner(ep: EntryPoint) -> str:
    """The distribution that provides ``ep``."""
    return ep.dist.name if ep.dist else "an unknown distribution"
