"""Malformed inputs at every door: counts tracebacks, hangs, silent results and what is left behind.

    python benchmarks/fuzz.py [--inputs=120] [--seed=0] [--doors=settings,archives]

Every door runs in a process of its own, with inputs made from one seed: bytes of a good file that
are cut, flipped, emptied, repeated or replaced; values of a wrong type; arguments that do not fit.
An input may be refused by one line, or taken where it does not matter or means something. It fails
if it ends in another error than the user's (`traceback`), takes over 10 seconds (`hang`), gives
another result than the good file although the door promises to notice (`silent`), or leaves files
behind after it was refused (`left over`). The exit status is 1 if any does.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
HANG_S = 10
MODEL = REPOSITORY / "tasks" / "corpus" / "spm8k.model"
GOLDEN = REPOSITORY / "tests" / "golden"


class _Hang(Exception):
    pass


class _Silent(Exception):
    """A result that differs, and nothing said so."""


@dataclasses.dataclass
class Door:
    """A way into the program.

    enter(folder, draw): makes one malformed input in the empty `folder` and returns what tries it;
    that raises UserError or SystemExit(2) where it refuses, and _Silent for a wrong result.
    """

    enter: Callable[[Path, random.Random], Callable[[], Any]]


# What happens to bytes.


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) or 1)]


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 20))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _repeat(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) or 1)
    return content[:place] + content[place // 2 :]


def _insert(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    new = draw.choice(
        (b"\0", b"\xff\xfe", b"[" * 2000, b"9" * 5000, b"\n", b'"', "\u2028".encode())
    )
    return content[:place] + new + content[place:]


def _replace(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(
        (b"", b"\0" * 100, b"{}", b"[]", b"null", b"\xef\xbb\xbf" + content, draw.randbytes(200),
         content.decode("latin-1").encode("utf-16"))
    )  # fmt: skip


MUTATIONS = (_cut, _flip, _repeat, _insert, _replace)


def damage(path: Path, draw: random.Random, mutations: Any = MUTATIONS) -> None:
    """Changes one file, or puts a folder or nothing in its place."""
    content = path.read_bytes()
    kind = draw.randrange(10)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    else:
        changed = draw.choice(mutations)(content, draw)
        path.write_bytes(changed if changed != content else content + b"\0")


def damage_one(folder: Path, draw: random.Random, mutations: Any = MUTATIONS) -> Path:
    path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    damage(path, draw, mutations)
    return path


# The doors.


def settings() -> Door:
    """Values of gin macros that their annotations do not allow."""
    from t5scaling import config

    files = [str(REPOSITORY / "gin" / name) for name in ("models/tiny.gin", "runs/finetune.gin")]
    whole = ("TRAIN_STEPS", "BATCH_SIZE", "LOG_EVERY", "MICROBATCHES", "EVAL_BATCH_SIZE",
             "STEPS_PER_CALL", "MAX_DECODE_LENGTH")  # fmt: skip
    others = ("PACK", "KEEP_CHECKPOINT", "TASK_FEATURE_LENGTHS", "MESH_SHAPE", "METRICS", "DECODER",
              "MODEL", "CHECKPOINT_STEPS", "MIRRORS", "TASK_MODULES")  # fmt: skip

    def never_whole(draw: random.Random) -> str:
        return draw.choice(
            (f"{draw.uniform(0.1, 9):.3f}", f"1e{draw.randrange(2, 400)}", f"-{draw.randrange(9)}",
             "0", "None", "''", "'5'", "[]", "(1, 2)", "{'a': 1}", "True", "nan", "@x", "%Y", "1_",
             "lambda: 1", "1;2", "(", "'", "# 5", draw.randbytes(4).decode("latin-1"))
        )  # fmt: skip

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        name = draw.choice(whole + others)
        value = never_whole(draw) if name in whole else draw.choice(("5.5", "'?'", "@nothing", "("))
        given = {"MODEL_DIR": str(folder / "run"), "MIXTURE_OR_TASK_NAME": "any", name: value}

        def attempt() -> None:
            config.load(files, given)
            raise _Silent(f"{name}={value} is taken")

        return attempt

    return Door(enter)


def gin_files() -> Door:
    """Damaged gin files."""
    from t5scaling import config

    good = (REPOSITORY / "gin/runs/finetune.gin").read_bytes()

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        path = folder / "own.gin"
        path.write_bytes(good)
        damage(path, draw)
        model = str(REPOSITORY / "gin/models/tiny.gin")
        return lambda: config.load([model, str(path)], {"MODEL_DIR": "x"})

    return Door(enter)


def arguments() -> Door:
    """Command lines that do not fit together, or name what is not there."""
    import run

    verbs = ("fit", "advise", "figures", "report", "status", "export", "convert", "work", "eval",
             "infer", "train", "study")  # fmt: skip

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        (folder / "table.csv").write_text("x,y\n1,2\n2,nine\n")
        (folder / "folder").mkdir()
        words = (str(folder / "none"), str(folder / "table.csv"), str(folder / "folder"), "", "-",
                 "--x=x", "--y=y", "--y=z", "--at=inf", "--at=-1", "--law=none", "--to=none",
                 "--hold_out=-3", "--protocol=x", "--gin_file=none.gin", "--gin.X=1", "--gin.=",
                 "--budget=nan", "--step=1", "--output=/dev/null/x", "\udcff", "~nobody/x",
                 "--unknown", "--interval=?", "--topology=v9:1", "--vocabulary=none.model",
                 f"--output={folder / 'table.csv'}", str(folder / "x[1]"))  # fmt: skip
        argv = [draw.choice(verbs), *(draw.choice(words) for _ in range(draw.randrange(1, 5)))]

        def attempt() -> None:
            status = run.main(argv)
            if status not in (0, 2) or (status == 0 and argv[0] not in ("fit", "advise", "status")):
                raise _Silent(f"{argv} ended with {status}")
            if status == 2:
                raise SystemExit(2)

        return attempt

    return Door(enter)


def tables() -> Door:
    """Damaged tables for `fit` and `advise`."""
    import run

    rows = [f"{x},{9 * x**-0.1 + 1:.4f},{x % 2}" for x in (1e5, 2e5, 4e5, 8e5, 16e5, 32e5)]
    good = ("tokens,loss,seed\n" + "\n".join(rows) + "\n").encode()

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        path = folder / "table.csv"
        path.write_bytes(good)
        damage(path, draw)
        argv = [draw.choice(("fit", "advise")), str(path), "--x=tokens", "--y=loss"]

        def attempt() -> None:
            if run.main(argv):
                raise SystemExit(2)

        return attempt

    return Door(enter)


def texts() -> Door:
    """Damaged text, JSON lines and tables of sentences, compressed or not."""
    import gzip
    import lzma

    from tasks import sources

    lines = {
        "text": "".join(f"line {i} of text\n" for i in range(50)).encode(),
        "jsonl": "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(50)).encode(),
    }
    packers = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        kind, ending = draw.choice(sorted(lines)), draw.choice(sorted(packers))
        path = folder / f"own.{kind}{ending}"
        path.write_bytes(packers[ending](lines[kind]))
        damage(path, draw)

        def attempt() -> None:
            read = sources.jsonl_reader({"targets": "text"}) if kind == "jsonl" else None
            try:
                for line in sources.open_lines(str(path)):
                    if line is not None:
                        with contextlib.suppress(sources.Broken):
                            (read((str(path),))[0] if read else sources.text_of)(line)
            except ValueError as error:  # which the materialising process turns into one line
                from t5scaling.errors import UserError

                if "\n" in str(error):
                    raise
                raise UserError(str(error)) from None

        return attempt

    return Door(enter)


def vocabularies() -> Door:
    """Damaged SentencePiece models."""
    from t5scaling.data.vocabulary import Vocabulary

    good = MODEL.read_bytes()

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        path = folder / "own.model"
        path.write_bytes(good)
        damage(path, draw)
        return lambda: Vocabulary(path).decode(Vocabulary(path).encode("Ein Satz. A sentence."))

    return Door(enter)


def examples() -> Door:
    """Damaged directories of examples: every row must be the one that was written."""
    import numpy as np

    from t5scaling.data.examples import Examples, find_examples
    from tests import mini

    root = tempfile.mkdtemp(prefix="fuzz_examples_")
    good = find_examples(mini.PAIRS, root)

    def rows(found: Examples) -> list[Any]:
        indices = list(range(min(len(found), 64)))
        return [
            {k: np.asarray(v).tolist() for k, v in row.items()} for row in found.read_many(indices)
        ]

    expected = rows(good)

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        copy = folder / good.path.name
        shutil.copytree(good.path, copy)
        name = damage_one(copy, draw).name

        def attempt() -> None:
            if rows(Examples(copy)) != expected:
                raise _Silent(f"other rows after damage to {name}")

        return attempt

    return Door(enter)


def checkpoints() -> Door:
    """Damaged checkpoints: the parameters must be those that were saved."""
    import jax
    import numpy as np

    from t5scaling.model import network
    from t5scaling.training import checkpoint, sharding, state, step

    config = network.T5Config(32, 16, 2, 8, 1, 1, 16)
    layout = sharding.make_layout(devices=jax.devices()[:1])
    params = network.init_params(config, jax.random.key(0))
    saved = tempfile.mkdtemp(prefix="fuzz_checkpoint_")
    checkpoints = checkpoint.Checkpoints(saved)
    checkpoints.save(3, state.create(params, config))
    checkpoints.wait()
    checkpoints.close()

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        shutil.copytree(f"{saved}/checkpoints", folder / "checkpoints")
        name = damage_one(folder / "checkpoints" / "checkpoint_3", draw).name
        path = str(folder / "checkpoints" / "checkpoint_3")

        def attempt() -> None:
            found = checkpoint.restore_params(path, step.abstract_params(config, layout))
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True)
            if not all(np.array_equal(a, b) for a, b in pairs):
                raise _Silent(f"other parameters after damage to {name}")

        return attempt

    return Door(enter)


def foreign_checkpoints() -> Door:
    """Checkpoints of T5X and of Hugging Face that are cut, emptied or of another kind."""
    import tarfile

    from t5scaling import convert

    sources = Path(tempfile.mkdtemp(prefix="fuzz_foreign_"))
    for name in ("v1_1-legacy", "v1_0-orbax"):
        with tarfile.open(GOLDEN / "t5x" / f"{name}.tar.xz") as archive:
            archive.extractall(sources, filter="data")
    for kind in ("mt5", "t5_1_0"):
        shutil.copytree(GOLDEN / "huggingface" / kind, sources / kind)
        (sources / kind / "expected.npz").unlink()

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        copy = folder / "source"
        shutil.copytree(sources / draw.choice(("legacy", "orbax", "mt5", "t5_1_0")), copy)
        # They hold no digests: a flipped bit of a weight is another weight.
        damage_one(copy, draw, (_cut, _replace, _insert))
        return lambda: convert.convert(str(copy), str(folder / "target"), to="huggingface")

    return Door(enter)


def _study(folder: Path) -> Path:
    """A finished study, made up, whose runs have the digests of their metrics."""
    import hashlib

    from tests.analysis_made_up_study import SIZES, write_study

    write_study(folder, sizes=SIZES[:3], pools=(1_000,), rates=(0.005,))
    for done in folder.rglob("DONE"):
        digest = hashlib.sha256((done.parent / "metrics.jsonl").read_bytes()).hexdigest()
        done.write_text(json.dumps({"step": 1, "metrics_sha256": digest}))
    return folder


def runs() -> Door:
    """Damaged files of a study's runs, read for its tables."""
    from t5scaling.analysis.results import harvest

    good = _study(Path(tempfile.mkdtemp(prefix="fuzz_study_")) / "study")
    harvest.harvest(good)
    expected = (good / "results.csv").read_bytes()

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        copy = shutil.copytree(good, folder / "study")
        path = draw.choice(sorted(p for p in copy.glob("runs/**/*") if p.is_file()))
        # A settings' digit that changes is another setting: of run.json only what breaks its form.
        damage(path, draw, MUTATIONS if path.name == "metrics.jsonl" else (_cut, _replace))

        def attempt() -> None:
            harvest.harvest(copy)
            if path.name == "DONE" and not path.exists():
                return  # a run that is not done, and is named so
            if (copy / "results.csv").read_bytes() != expected:
                raise _Silent(f"another table after damage to {path.name}")

        return attempt

    return Door(enter)


def studies() -> Door:
    """Damaged files of a study and of its runs, those of runs at work among them, shown and packed:
    `status` and `export` end, and leave no half of an archive."""
    import run

    good = _study(Path(tempfile.mkdtemp(prefix="fuzz_shown_")) / "study")
    for folder in sorted(path.parent for path in good.glob("runs/finetune/**/run.json"))[:2]:
        (folder / "DONE").unlink()
        (folder / "FAILED").write_text(json.dumps({"reason": "a disk", "failures": 1}))
        (folder / "JOB").write_text(json.dumps({"job": "17"}))
        (folder / "claims").mkdir()
        claim = {"owner": "a", "host": "b", "pid": 1, "started": "2", "job": "", "step": 0}
        (folder / "claims" / "1").write_text(json.dumps(claim | {"beat": 1}))
    ids = [json.loads(path.read_text())["id"] for path in good.glob("runs/**/run.json")]
    (good / "study.json").write_text(json.dumps({"study": "quick", "runs": ids}))

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        copy = shutil.copytree(good, folder / "study")
        damage_one(copy, draw)
        verb = draw.choice(("status", "export"))
        argv = [verb, str(copy), *(["--output", str(folder / "o.tar.gz")] * (verb == "export"))]

        def attempt() -> None:
            if run.main(argv):
                raise SystemExit(2)

        return attempt

    return Door(enter)


def archives() -> Door:
    """Damaged archives of a study: unpacked as they were packed, or not at all."""
    from t5scaling.analysis import archive
    from t5scaling.analysis.results import harvest

    base = Path(tempfile.mkdtemp(prefix="fuzz_archive_"))
    study = _study(base / "study")
    harvest.harvest(study)
    packed = Path(archive.export(str(study), str(base / "packed.tar.gz")))

    def content(folder: Path) -> dict[str, bytes]:
        files = (p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): p.read_bytes() for p in files}

    expected = content(Path(archive.opened(str(packed))))

    def enter(folder: Path, draw: random.Random) -> Callable[[], Any]:
        path = folder / "other.tar.gz"
        path.write_bytes(packed.read_bytes())
        damage(path, draw)

        def attempt() -> None:
            if content(Path(archive.opened(str(path)))) != expected:
                raise _Silent("other files")

        return attempt

    return Door(enter)


DOORS = {
    door.__name__: door
    for door in (settings, gin_files, arguments, tables, texts, vocabularies, examples, checkpoints,
                 foreign_checkpoints, runs, studies, archives)
}  # fmt: skip


# One door, in this process.


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _Hang

    signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def try_door(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """-> {"counts", "failures"} of the inputs of one door."""
    from t5scaling import compilation
    from t5scaling.errors import UserError

    compilation.prepare()
    door = DOORS[name]()
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []

    def fails(what: str, words: str, number: int) -> None:
        counts[what] += 1
        failures.append(f"input {number}: {what}: {words}")

    for number in range(inputs):
        draw = random.Random(f"{name} {seed} {number}")
        with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
            folder = Path(scratch) / "here"
            folder.mkdir()
            attempt = door.enter(folder, draw)
            before, said = _names(folder), io.StringIO()
            refused = True
            try:
                with _limited(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    attempt()
                counts["taken"] += 1
                refused = False
            except (UserError, SystemExit) as error:
                counts["refused"] += 1
                if isinstance(error, UserError) and "\n" in str(error):
                    fails("traceback", f"more than one line: {error!r}", number)
            except _Silent as wrong:
                fails("silent", str(wrong), number)
                refused = False
            except _Hang:
                fails("hang", "", number)
            except BaseException as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                words = f"{type(error).__name__}: {str(error)[:160]}"
                fails("traceback", f"{words} ({place.filename}:{place.lineno})", number)
            if refused and (left := _names(folder) - before):
                fails("left over", ", ".join(sorted(left)[:3]), number)
    return {"counts": dict(counts), "failures": failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=120, help="of each door (default: 120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--doors", default=",".join(DOORS), help="by commas (default: all)")
    parser.add_argument("--door", choices=DOORS, help="this one, in this process; prints JSON")
    chosen = parser.parse_args()
    os.chdir(REPOSITORY)
    if chosen.door:
        # Libraries in C++ write where Python does not.
        print(json.dumps(try_door(chosen.door, chosen.inputs, chosen.seed)))
        return 0
    wrong = total = 0
    kinds = ("traceback", "hang", "silent", "left over")
    print(f"{'door':20} {'refused':>8} {'taken':>6} " + " ".join(f"{k:>9}" for k in kinds))
    for door in chosen.doors.split(","):
        command = [sys.executable, __file__, f"--door={door}", f"--inputs={chosen.inputs}"]
        command.append(f"--seed={chosen.seed}")
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            found = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            found = {"counts": {"traceback": 1}, "failures": [f"it ended: {done.stderr[-300:]}"]}
        counts = found["counts"]
        total += counts.get("refused", 0) + counts.get("taken", 0) + counts.get("silent", 0)
        wrong += sum(counts.get(kind, 0) for kind in kinds)
        print(
            f"{door:20} {counts.get('refused', 0):8} {counts.get('taken', 0):6} "
            + " ".join(f"{counts.get(kind, 0):9}" for kind in kinds),
            flush=True,
        )
        for failure in found["failures"][:5]:
            print(f"  {failure}", flush=True)
    print(f"{total:,} inputs, {wrong} of them wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
