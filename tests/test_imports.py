"""Who may import whom, and what the training process must never load."""

import ast
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

ROOT = Path(REPOSITORY)
# An arrow never runs back up; every room may use the ground floor and itself.
GROUND = ("amounts", "environments", "errors", "records", "storage", "values")
ALLOWED = {
    "model": set(),
    "data": set(),
    "interop": {"model", "data"},
    "training": {"model", "data", "interop"},
    "evaluation": {"model", "data", "training"},
    "study": {
        "model",
        "data",
        "training",
        "evaluation",
        "interop",
        "config",
        "compilation",
        "nvidia",
    },
    "analysis": set(),
    "config": set(),
    "command_line": {"verb", "verbs"},
    "verb": {"compilation", "training"},
    "law_verbs": {"verb", "analysis"},
    "verbs": {
        "analysis",
        "compilation",
        "config",
        "convert",
        "doctor",
        "evaluation",
        "interop",
        "law_verbs",
        "study",
        "training",
        "verb",
    },
    "convert": {"model", "data", "interop", "training"},
    "doctor": {"compilation", "interop", "nvidia", "self_test"},
    "self_test": {"model", "training"},
    "compilation": {"nvidia"},
    "nvidia": set(),
    "amounts": set(),
    "errors": set(),
    "values": set(),
    "storage": set(),
    "records": set(),
    "environments": set(),
}

# What the main requirements do not bring: verbs without `needs` do without.
OF_EXTRAS = {
    "jax", "flax", "optax", "orbax", "msgpack", "grain", "array_record", "tensorstore", "gin",
    "sentencepiece", "safetensors", "sacrebleu", "seqio", "tensorflow",
}  # fmt: skip


# The rooms of the analysis; what lies beside them in its folder are the verbs, which may use all.
ANALYSIS = {
    "metrics": set(),
    "wording": set(),
    "laws": set(),
    "fitting": {"laws"},
    "results": {"metrics", "wording"},
    "conclusions": {"metrics", "wording", "laws", "fitting", "results"},
    "presentation": {"metrics", "wording", "laws", "fitting", "results", "conclusions"},
}


def imports(path):
    """Every module that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "t5scaling" and len(parts) > 1 else None


def sources(folder):
    return [p for p in (ROOT / folder).rglob("*.py") if "corpus" not in p.parts]


def test_arrows_between_rooms():
    wrong, seen = [], set()
    for path in sources("t5scaling"):
        room = path.relative_to(ROOT / "t5scaling").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module in imports(path):
            other = room_of(module)
            if other in ALLOWED:
                seen.add((room, other))
                if other not in ALLOWED[room] | {room, *GROUND}:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong
    assert ("study", "training") in seen and ("training", "model") in seen  # the test sees arrows


def test_arrows_between_the_rooms_of_the_analysis():
    """Laws and fitting import no other room: they can be lifted out as a library of numerics."""
    wrong, seen = [], set()
    for path in sources("t5scaling/analysis"):
        room = path.relative_to(ROOT / "t5scaling/analysis").parts[0].removesuffix(".py")
        for module in imports(path):
            parts = module.split(".")
            if parts[:2] != ["t5scaling", "analysis"] or len(parts) < 3 or room not in ANALYSIS:
                continue
            seen.add((room, parts[2]))
            if parts[2] not in ANALYSIS[room] | {room}:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong
    assert {("fitting", "laws"), ("presentation", "conclusions")} <= seen  # the test sees arrows


def test_only_reading_imports_seqio_and_tensorflow():
    heavy = {"seqio", "tensorflow", "tensorflow_text", "tensorflow_datasets"}
    users = {
        str(path.relative_to(ROOT))
        for path in sources("t5scaling")
        if heavy & {module.split(".")[0] for module in imports(path)}
    }
    assert users == {"t5scaling/data/reading.py", "t5scaling/data/as_seqio.py"}


def test_analysis_needs_no_accelerator_code():
    allowed = {"numpy", "scipy", "pandas", "matplotlib", "rich", "t5scaling", "mpl_toolkits"}
    allowed |= {"jinja2", "markupsafe"}
    allowed.add("tensorboardX")  # reads event files, without TensorFlow
    for path in sources("t5scaling/analysis"):
        for module in imports(path):
            top = module.split(".")[0]
            assert top in allowed or top in sys.stdlib_module_names, f"{path}: {module}"


def test_tasks_import_nothing_of_ours():
    for path in sources("tasks"):
        assert not [m for m in imports(path) if m.startswith("t5scaling")], path


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stdout.splitlines()}


def test_what_the_processes_load():
    training = loaded_by(
        "from t5scaling import config\n"
        "config.load(['gin/models/tiny.gin', 'gin/runs/finetune.gin'], {'MODEL_DIR': 'x',\n"
        "  'MIXTURE_OR_TASK_NAME': 'y'})\n"
        "from t5scaling.study import runner"
    )
    assert "jax" in training and not training & {"tensorflow", "seqio", "matplotlib", "scipy"}
    assert "jax" not in loaded_by("import t5scaling.analysis.report")
    looks = loaded_by(  # at studies that are not there
        "from t5scaling import command_line\n"
        "assert [command_line.main([verb, 'nowhere']) for verb in ('status', 'report')] == [2, 2]"
    )
    assert "rich" in looks and not looks & OF_EXTRAS
    assert not loaded_by("import t5scaling.doctor") & {"jax", "numpy", "rich"}
    assert not loaded_by("from t5scaling import command_line; command_line.parser('t5scaling')") & {
        "jax",
        "numpy",
        "gin",
    }
