"""What has to be told to JAX before it compiles: the persistent cache, and quiet logs."""

import logging
import os


def prepare(cache_dir: str | None = None) -> str:
    """Turns on the persistent compilation cache, so that only the first launch ever compiles.

    The cache is `cache_dir`, else $JAX_COMPILATION_CACHE_DIR, else
    $XDG_CACHE_HOME/t5scaling/compilation (default ~/.cache). Returns its path.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own log lines, below errors
    import jax

    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache_dir = (
        cache_dir
        or os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or os.path.join(home, "t5scaling", "compilation")
    )
    jax.config.update("jax_compilation_cache_dir", cache_dir)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # Orbax logs each save, and each error with a traceback that it then raises as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return cache_dir
