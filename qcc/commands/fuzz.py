"""``qcc fuzz``."""


def fuzz_command() -> None:
    """Compare."""
