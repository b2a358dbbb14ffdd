"""What of a machine's settings may reach a model: none of Keras's own, and no variable that changes what is computed.

Keras reads `~/.keras/keras.json` and variables; TensorFlow, oneDNN and NVIDIA's libraries read variables. A model must
not depend on who made it, so settings are as they were tested with, whatever lies there. Other variables of these
libraries stay, since some say where things are, and the training record names them.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import Any

from cervix_engine.errors import BackendUnavailableError
from cervix_engine.privacy import keep_out_of_home

log = logging.getLogger(__name__)

BACKEND = "tensorflow"

# Each is unset in a usual environment, and changes lengths, kernels or the precision of arithmetic.
WITHOUT_EFFECT = (
    "KERAS_MAX_EPOCHS",
    "KERAS_MAX_STEPS_PER_EPOCH",
    "KERAS_NNX_ENABLED",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "NVIDIA_TF32_OVERRIDE",
    "TF_ENABLE_CUBLAS_TENSOR_OP_MATH_FP32",
    "TF_ENABLE_CUDNN_TENSOR_OP_MATH_FP32",
    "TF_ENABLE_CUDNN_RNN_TENSOR_OP_MATH_FP32",
    "TF_CUDNN_USE_AUTOTUNE",
)
_RECORDED = ("TF_", "XLA_", "KERAS_", "ONEDNN_", "DNNL_", "OMP_", "MKL_", "KMP_", "CUBLAS_", "CUDNN_", "NVIDIA_",
             "ORT_", "OV_", "OPENVINO_")  # fmt: skip
# These are set by the project itself, or say nothing of results.
_OUR_OWN = frozenset({"KERAS_BACKEND", "KERAS_HOME", "ORT_DISABLE_TELEMETRY", "TF_CPP_MIN_LOG_LEVEL"})
# Terraform's variables begin like TensorFlow's; and what is recorded travels with the bundle, so no secret may be.
_FOREIGN = ("TF_CLI_", "TF_DATA_DIR", "TF_IN_AUTOMATION", "TF_INPUT", "TF_LOG", "TF_PLUGIN_", "TF_VAR_", "TF_WORKSPACE")
_SECRET = ("CREDENTIAL", "KEY", "PASSWORD", "SECRET", "TOKEN")


@lru_cache(maxsize=1)
def pin_environment() -> dict[str, str]:
    """Take out of this process what would change results; call it before TensorFlow and Keras are imported.

    Returns:
        Variables of the libraries that were set and stay, in the order of their names.
    """
    os.environ["KERAS_BACKEND"] = BACKEND
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Keras's files are locked while they are written, which some network file systems cannot; all are of this process.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    keep_out_of_home()
    for name in WITHOUT_EFFECT:
        if (value := os.environ.pop(name, None)) is not None:
            log.warning("%s=%s has no effect here: a model must not depend on who makes it", name, value)
    return {name: os.environ[name] for name in sorted(filter(_is_recorded, os.environ))}


def _is_recorded(name: str) -> bool:
    if name in _OUR_OWN or name.startswith(_FOREIGN) or any(word in name for word in _SECRET):
        return False
    return name.startswith(_RECORDED)


def pin_keras(keras: Any) -> None:
    """Set what an imported Keras may have read before, or been told by other code of this process.

    Raises:
        BackendUnavailableError: it runs on another backend, which cannot be changed any more.
    """
    config = keras.config
    if config.backend() != BACKEND:
        raise BackendUnavailableError(f"Keras was imported with the {config.backend()} backend, expected {BACKEND}")
    config.set_floatx("float32")
    config.set_dtype_policy("float32")
    config.set_epsilon(1e-7)
    config.set_image_data_format("channels_last")
    config.set_max_epochs(None)
    config.set_max_steps_per_epoch(None)
