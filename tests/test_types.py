"""Types, in the settings of pyproject.toml, checked as an editor shows them."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def test_types():
    pytest.importorskip("basedpyright", reason="it comes with the extra `test`")
    command = [sys.executable, "-m", "basedpyright", "--outputjson"]
    command += ["--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # others: it could not run
    report = json.loads(done.stdout)
    found = [entry for entry in report["generalDiagnostics"] if entry["severity"] == "error"]
    lines = [
        f"{entry['file']}:{entry['range']['start']['line'] + 1}: {entry['message']}"
        for entry in found
    ]
    assert not lines, "\n".join(lines)
    assert report["summary"]["filesAnalyzed"] > 100
