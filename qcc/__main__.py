"""``python -m qcc``."""

from qcc.cli import main

if __name__ == "__main__":
    main()
