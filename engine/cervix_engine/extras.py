"""Whether what an extra of the project installs is here: asked before the work that needs it."""

from __future__ import annotations

from importlib.util import find_spec

from cervix_engine.errors import BackendUnavailableError


def require_installed(extra: str, *modules: str, work: str) -> None:
    """Refuse work whose libraries are missing, without loading them.

    Args:
        extra: of the project, that installs them.
        modules: what is imported.
        work: that needs them, such as `a page`.

    Raises:
        BackendUnavailableError: one of them is not installed; the message says what installs it.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise BackendUnavailableError(f"{work} needs {', '.join(missing)}: pip install '.[{extra}]'")
