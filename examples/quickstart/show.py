"""Print a few evaluation images as text with what the integer network makes of them.

python show.py evaluation.npz answers.npz
"""

import sys

import numpy as np
from numpy.typing import NDArray

SHADES = np.array(list(" .:-=+*#%@"))
SHOWN = 6


def picture(image: NDArray[np.float32]) -> list[str]:
    """The rows of an [8, 8] image in [0, 1], two characters to a pixel."""
    shades = SHADES[np.rint(image * (len(SHADES) - 1)).astype(int)]
    return ["".join(np.repeat(row, 2)) for row in shades]


def main(evaluation: str, answers: str) -> None:
    data = np.load(evaluation)
    guesses = np.load(answers)["logits"].argmax(axis=1)
    rows = zip(*(picture(image[0]) for image in data["image"][:SHOWN]), strict=True)
    lines = ["  ".join(row) for row in rows]
    lines.append("  ".join(f"read as {guess}".center(16) for guess in guesses[:SHOWN]))
    right = int(np.sum(guesses == data["labels"]))
    lines.append(f"\n{right} of {len(guesses)} digits read correctly ({100 * right / len(guesses):.1f} %)")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
