"""``qcc verify``."""


def verify_command() -> None:
    """Compare."""
