"""The models that come with the project: voice, face and English words, in starter/.

predict.py and app.py use them where no checkpoints are given.
"""

from __future__ import annotations

from pathlib import Path

from utils.errors import UsageError

FOLDER = Path(__file__).resolve().parent.parent / "starter"
WORDS = FOLDER / "words.npz"  # the vectors that its words are looked up in


def starter_models() -> list[Path]:
    """The files of the models; UsageError where they are not there."""
    files = sorted(FOLDER.glob("*.pth"))
    if not files:
        raise UsageError(
            f"no models in {FOLDER}: give --checkpoints, or train them: bash recipes/starter.sh"
        )
    return files
