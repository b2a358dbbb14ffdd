"""The commands `cervix-train`, `cervix-evaluate` and `cervix-audit`."""

from __future__ import annotations

from cervix_engine.extras import require_installed


def require_libraries() -> None:
    """Refuse a command that computes with Keras where the extra `train` is not installed.

    Raises:
        BackendUnavailableError: a library of it is missing.
    """
    require_installed("train", "tensorflow", "keras", "sklearn", "scipy", "matplotlib", work="training")
