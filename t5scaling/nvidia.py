"""JAX's CUDA plugin on a machine without an NVIDIA GPU, as `plan` for GPUs needs it there."""

import logging
import os
import shutil


def driver_is_here() -> bool:
    return os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None


def keep_quiet_without_a_driver() -> None:
    """JAX starts every plugin that is installed, and logs a traceback when CUDA's finds no library.

    Where there is no driver nothing is amiss: that record is dropped. Call it before JAX looks for
    devices.
    """
    if not driver_is_here():
        logging.getLogger("jax._src.xla_bridge").addFilter(_is_no_missing_library)


def _is_no_missing_library(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not (message.startswith("Jax plugin configuration error") and "xla_cuda" in message)
