"""Starts Keras on TensorFlow, quietly and reproducibly.

TensorFlow writes a dozen lines to the process's standard error while it is imported and when it first computes,
some of them from C++ before any of its own settings apply. They would bury the one line that a user needs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cervix_engine.errors import BackendUnavailableError
from cervix_engine.version import __version__
from cervix_keras.settings import pin_environment, pin_keras

KerasModel = Any  # keras.Model: Keras has no complete types


def load_keras(*, seed: int | None = None) -> Any:
    """Import Keras with the TensorFlow backend and pinned settings; with `seed`, make what follows reproducible.

    Returns:
        The `keras` module.

    Raises:
        BackendUnavailableError: TensorFlow or Keras is not installed, or Keras runs on another backend already.
    """
    pin_environment()
    if "tensorflow" not in sys.modules:
        with native_stderr_held():
            _import_tensorflow()
    keras = _import_keras()
    pin_keras(keras)
    keras.config.disable_interactive_logging()
    if seed is not None:
        keras.utils.set_random_seed(seed)
        _make_deterministic()
    return keras


def library_versions() -> dict[str, str]:
    """What the outcome of a training also depends on."""
    import platform
    from importlib.metadata import version

    names = ("keras", "numpy", "scikit-learn", "opencv-python-headless")
    return {
        "cervix": __version__,
        "python": platform.python_version(),
        "tensorflow": str(sys.modules["tensorflow"].__version__),
        **{name: version(name) for name in names},
    }


def _import_tensorflow() -> None:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise BackendUnavailableError("TensorFlow is not installed: pip install '.[train]'") from error
    # Python-side warnings, such as those of retracing for a shorter last batch.
    tf.get_logger().setLevel("ERROR")
    # The first computation starts TensorFlow's devices, which logs once more.
    tf.constant(0.0).numpy()


def _import_keras() -> Any:
    try:
        import keras
    except ImportError as error:
        raise BackendUnavailableError("Keras is not installed: pip install '.[train]'") from error
    return keras


def _make_deterministic() -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


@contextmanager
def native_stderr_held() -> Iterator[None]:
    """Hold back what C++ code writes to descriptor 2; pass it on if the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
