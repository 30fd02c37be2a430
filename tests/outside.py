"""Programs that tests meet and that do not come with the project's packages: Slurm and SkyPilot.

    python -m tests.outside

installs those that are missing, and says so; `make test` does it before the tests, which install
nothing. Tests of what is not here are skipped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from t5scaling import storage

DAEMONS = ("slurmctld", "slurmd", "munged")
DEBIAN = ("slurm-wlm", "munge")  # their packages
NEEDED = Path(__file__).with_name("skypilot.txt")
MISSING = "{} is not ready here; `python -m tests.outside` installs it or says why it cannot"


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def has_slurm() -> bool:
    return os.geteuid() == 0 and all(map(program, DAEMONS))


def has_skypilot() -> bool:
    installed = _skypilot() / "installed.txt"
    there = installed.exists() and os.path.exists(skypilot_python())
    return there and installed.read_text() == NEEDED.read_text()


def skypilot_python() -> str:
    """Of an environment of its own, as SkyPilot's dependencies are not the project's."""
    return str(_skypilot() / "bin/python")


def _skypilot() -> Path:
    return storage.cache_folder("skypilot")


def _install_slurm() -> str:
    """Returns why it failed, or ""."""
    if os.geteuid() != 0:
        return "its daemons need root"
    if shutil.which("apt-get") is None:
        return "there is no apt-get"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return _run(["apt-get", "update", "-qq"], quiet) or _run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *DEBIAN], quiet
    )


def _install_skypilot() -> str:
    """Returns why it failed, or ""."""
    make = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(_skypilot())]
    install = [sys.executable, "-m", "pip", "--python", skypilot_python(), "install", "--quiet"]
    install += ["--no-compile", "--no-deps", "--requirement", str(NEEDED)]
    failed = _run(make) or _run(install)
    if not failed:
        shutil.copy(NEEDED, _skypilot() / "installed.txt")
    return failed


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1] if done.returncode else ""


def main() -> None:
    for name, tests, here, install in (
        ("Slurm", "test_slurm", has_slurm, _install_slurm),
        ("SkyPilot", "test_cloud_tpu", has_skypilot, _install_skypilot),
    ):
        if here():
            continue
        print(f"installing {name} for tests/{tests}.py", flush=True)
        if reason := install():
            print(f"{name} is not installed, and tests that need it are skipped: {reason}")


if __name__ == "__main__":
    main()
