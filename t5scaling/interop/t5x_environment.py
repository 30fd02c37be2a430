"""Where T5X can be imported: an environment of its own, made by `run.py t5x-setup`.

T5X is on no package index, and what its setup.py asks for does not go together. So this project's
own packages come first, in the versions of constraints.txt with which T5X was run, and with them
what T5X imports beside; then T5X, airio and jestimator without what they ask for, each at the
commit with which it was run.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib import util
from pathlib import Path

from t5scaling import environments, storage
from t5scaling.errors import UserError, nearest

REPOSITORY = Path(__file__).resolve().parents[2]
# Package -> (git address, commit).
SOURCES = {
    "jestimator": (
        "https://github.com/google-research/jestimator",
        "326824a477feef6d92e6f44175000907a72899ca",
    ),
    "airio": ("https://github.com/google/airio", "69897df7d9a427b947a9f7bb4164c7782b43e601"),
    "t5x": ("https://github.com/google-research/t5x", "cc342d419ec3e3e9c4bf1df33c82330cafdc1e16"),
}
# What they import and this project does not.
BESIDE = ("cached_property==2.0.1", "clu==0.0.12", "fiddle==0.3.1", "tensorboard==2.21.0")
EXTRAS = ("gpu", "cuda12", "tpu")  # of pyproject.toml: for devices
# Looks the packages up without this process's folders.
_VERSIONS = """
import importlib.metadata, json
import t5x.train
names = ("t5x", "airio", "jestimator", "jax", "seqio", "tensorflow")
print(json.dumps({name: importlib.metadata.version(name) for name in names}))
"""


def _versions(python: Path) -> dict[str, str] | None:
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}
    command = [str(python), "-I", "-W", "ignore", "-c", _VERSIONS]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", env=quiet)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


ENVIRONMENT = environments.Environment("T5X", "t5x", _versions)


def setup(
    folder: str | os.PathLike | None = None,
    *,
    source: str | None = None,
    extra: str | None = None,
    python: str = sys.executable,
) -> Path:
    """Makes T5X's environment, as `environments.Environment.setup` does.

    Args:
        folder: where; the default one if None.
        source: a folder with clones of SOURCES (`t5x`, `airio`, `jestimator`), with or without
            their files checked out; their addresses on GitHub if None.
        extra: of pyproject.toml, for the devices that T5X shall use: one of EXTRAS.
        python: the interpreter to make it of.
    """
    if extra is not None and extra not in EXTRAS:
        raise UserError(f"--extra is {extra!r}{nearest(extra, EXTRAS)}")
    constraints = REPOSITORY / "constraints.txt"
    if not constraints.is_file():
        raise UserError(f"{REPOSITORY} has no constraints.txt: t5x-setup needs this repository")
    with tempfile.TemporaryDirectory(prefix="t5x-setup-") as trees:
        addresses = _addresses(source, trees)
        ours = f"{REPOSITORY}[{extra or 'study'}]"
        steps = [
            environments.Step(
                "installing JAX, TensorFlow, SeqIO and what else T5X imports: about 2 GB",
                ("--constraint", str(constraints), "--editable", ours, *BESIDE),
                "pip could not install what T5X needs",
            ),
            environments.Step(
                f"installing {', '.join(SOURCES)} from {source or 'GitHub'}",
                ("--no-deps", *addresses),
                "pip could not install T5X",
            ),
        ]
        return ENVIRONMENT.setup(folder, steps, python=python)


def _addresses(source: str | None, trees: str) -> list[str]:
    """What pip is given for each of SOURCES. Raises UserError if `source` lacks one."""
    if source is None:
        return [f"{n} @ git+{address}@{commit}" for n, (address, commit) in SOURCES.items()]
    found = []
    for name in SOURCES:
        clone = os.path.join(storage.expanded(source), name)
        if not os.path.isdir(clone):
            raise UserError(
                f"--source={source}: no folder {name} in it; expected clones of "
                f"{', '.join(SOURCES)}"
            )
        if any(os.path.isfile(os.path.join(clone, n)) for n in ("setup.py", "pyproject.toml")):
            found.append(clone)
            continue
        tree = os.path.join(trees, name)
        os.mkdir(tree)
        git = ["git", "-C", clone, "archive", "HEAD"]
        try:
            archive = subprocess.run(git, capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            raise UserError(f"{clone} is not a clone of {SOURCES[name][0]}") from None
        subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
        found.append(tree)
    return found


def is_here() -> bool:
    """Whether this process could import T5X itself."""
    return util.find_spec("t5x") is not None


def command(folder: str | None) -> tuple[list[str], str]:
    """(the start of a command, PYTHONPATH) with which T5X finds itself and this package.

    `folder`: of the environment; None for this Python where it can import T5X, else the default
    one. Raises UserError, with what to do, if there is no T5X.
    """
    if folder is None and is_here() and not ENVIRONMENT.is_ready():
        before = os.environ.get("PYTHONPATH", "")
        return [sys.executable], os.pathsep.join(filter(None, [str(REPOSITORY), before]))
    return [str(ENVIRONMENT.python(folder))], str(REPOSITORY)
