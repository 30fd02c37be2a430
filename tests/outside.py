"""Programs that tests meet and that do not come with the project's packages: Slurm and SkyPilot.

    python -m tests.outside

installs those that are missing, and says so; `make test` does it before the tests, which install
nothing. Tests of what cannot be installed are skipped.
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
INSTALL = "`python -m tests.outside` installs it"


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def without_slurm() -> str:
    """Why there can be no Slurm here; "" if there can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    return "" if all(map(program, DAEMONS)) else f"there is no Slurm here; {INSTALL}"


def without_skypilot() -> str:
    """Why there is no SkyPilot here; "" if there is."""
    installed = _skypilot() / "installed.txt"
    if installed.exists() and installed.read_text() == NEEDED.read_text():
        return ""
    return f"there is no SkyPilot here; {INSTALL}"


def skypilot_python() -> str:
    """Of an environment of its own, as SkyPilot's dependencies are not the project's."""
    return str(_skypilot() / "bin/python")


def _skypilot() -> Path:
    return storage.cache_folder("skypilot")


def _install_slurm() -> str:
    """Returns why it failed, or ""."""
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
    for name, tests, without, install in (
        ("Slurm", "test_slurm", without_slurm, _install_slurm),
        ("SkyPilot", "test_cloud_tpu", without_skypilot, _install_skypilot),
    ):
        reason = without()
        if reason.endswith(INSTALL):
            print(f"installing {name} for tests/{tests}.py", flush=True)
            reason = install()
        if reason:
            print(f"tests/{tests}.py skips what needs {name}: {reason}", flush=True)


if __name__ == "__main__":
    main()
