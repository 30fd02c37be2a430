"""What has to be set before JAX starts: compilation cache, memory allocation, quiet logs."""

import ctypes
import logging
import os
import sys

from t5scaling import nvidia, storage

# mallopt's parameters (glibc malloc.h) and their values: keep freed memory in the process. XLA on
# a CPU frees and takes hundreds of megabytes a step, and giving them back to the system each time
# costs a page fault per 4 kB: about a third of a small model's step.
_MALLOPT = {
    -8: 1,  # M_ARENA_MAX: one heap, as large blocks of other arenas bypass it
    -4: 0,  # M_MMAP_MAX: large blocks come from the heap too
    -1: -1,  # M_TRIM_THRESHOLD: the heap never shrinks
    -2: 64 << 20,  # M_TOP_PAD: and grows by so many bytes
}


# What keeps a GPU's choice of algorithms fixed, see _repeat_exactly; and ahead of time, without a
# device to time them on, there is no other choice.
GPU_FLAGS = (
    "--xla_gpu_autotune_level=0",
    "--xla_gpu_enable_triton_gemm=false",
    # Products merged into a larger one are copied apart afterwards.
    "--xla_gpu_dot_merger_threshold_mb=0",
)


def prepare(cache_dir: str | None = None) -> str:
    """Makes later launches start without compiling, and steps on a CPU without page faults.

    Call it before anything imports JAX. The cache is `cache_dir`, else
    $JAX_COMPILATION_CACHE_DIR, else $XDG_CACHE_HOME/t5scaling/compilation (default ~/.cache).
    Returns its path.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own log lines, below errors
    _repeat_exactly()
    _keep_freed_memory()
    nvidia.keep_quiet_without_a_driver()
    import jax

    cache_dir = (
        cache_dir
        or os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or str(storage.cache_folder("compilation"))
    )
    jax.config.update("jax_compilation_cache_dir", cache_dir)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # One kernel draws a GPU's random numbers. XLA would otherwise write the generator out wherever
    # some are drawn: the same bits and a step with dropout 2 % faster, but T5 1.1 base then takes
    # two minutes to compile instead of 40 s, and so does drawing its first parameters.
    if "JAX_THREEFRY_GPU_KERNEL_LOWERING" not in os.environ:
        jax.config.update("jax_threefry_gpu_kernel_lowering", True)
    # On a CPU a step that is dispatched early takes its memory before the one before has given its
    # own back: up to three times as much, and no faster.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # Orbax logs each save, and each error with a traceback that it then raises as well; the other
    # reads of a damaged checkpoint are left to asyncio, which complains of each at the exit.
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return cache_dir


def _repeat_exactly() -> None:
    """Makes the choice of algorithms on a GPU independent of their speed at that moment.

    XLA chooses among the algorithms for a product by timing them, and two runs may then round
    differently. Without it cuBLAS's own rule chooses. No result of the step depends on the order of
    threads, so that XLA's deterministic replacements, which are slow, are not needed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    for flag in GPU_FLAGS:
        if flag.split("=")[0] not in flags:
            flags = f"{flags} {flag}".strip()
    os.environ["XLA_FLAGS"] = flags


def _keep_freed_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):  # other C libraries have no such settings
        for parameter, value in _MALLOPT.items():
            libc.mallopt(parameter, value)
