"""A study packed, opened elsewhere and reported again."""

import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from t5scaling.analysis import archive, report
from t5scaling.analysis.results import harvest
from t5scaling.errors import UserError
from tests.analysis_made_up_study import SIZES, write_study
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported") / "study"
    write_study(folder, pools=(1_000,), rates=(0.005,))
    report.report(folder)
    return folder


@pytest.fixture
def study(reported, tmp_path):
    folder = tmp_path / "here" / "study"
    shutil.copytree(reported, folder)
    answers = next(folder.glob("runs/**/run.json")).parent / "inference_eval"
    answers.mkdir()
    (answers / "task-000010.jsonl").write_text("{}\n")
    (answers / "task-metrics.jsonl").write_text("{}\n")
    (folder / "runs/checkpoints_are_large").write_text("no")
    return folder


def test_the_report_elsewhere_is_the_same(study, tmp_path):
    packed = archive.export(str(study), str(tmp_path / "elsewhere" / "mine.tar.gz"))
    opened = archive.opened(str(packed))
    assert opened == str(tmp_path / "elsewhere" / "mine")
    made = {
        name: (study / name).read_bytes() for name in ("results.csv", "fits.json", "report.html")
    }
    report.report(opened)
    for name, content in made.items():
        assert (tmp_path / "elsewhere/mine" / name).read_bytes() == content, name
    assert archive.opened(str(packed)) == opened  # again, over the same


def test_the_same_study_gives_the_same_bytes(study, tmp_path):
    one, two = (archive.export(str(study), str(tmp_path / x / "a.tar.gz")) for x in "12")
    assert one.read_bytes() == two.read_bytes()


def test_predictions_only_if_asked_for(study, tmp_path):
    def names(**options):
        with tarfile.open(archive.export(str(study), str(tmp_path / "a.tar.gz"), **options)) as tar:
            return {name.rpartition("/")[2] for name in tar.getnames()}

    short, full = names(), names(predictions=True)
    assert full - short == {"task-000010.jsonl"} and "task-metrics.jsonl" in short
    assert "checkpoints_are_large" not in full


def test_what_is_no_archive_or_would_be_lost(study, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        archive.opened(str(tmp_path / "none.tar.gz"))
    (tmp_path / "folder.tar.gz").mkdir()
    with pytest.raises(UserError, match="a folder, not an archive"):
        archive.opened(str(tmp_path / "folder.tar.gz"))
    junk = tmp_path / "junk.tar.gz"
    junk.write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be unpacked"):
        archive.opened(str(junk))
    for name in (".tar.gz", "..tar.gz", "...tar.gz", "a.zip"):
        with pytest.raises(UserError, match=r"ends in \.tar\.gz"):
            archive.export(str(study), str(tmp_path / name))
    for name in (".tar.gz", "..tar.gz", "...tar.gz"):
        junk.rename(tmp_path / name)
        junk = tmp_path / name
        with pytest.raises(UserError, match=r"ends in \.tar\.gz"):
            archive.opened(str(junk))
    packed = archive.export(str(study), str(tmp_path / "mine.tar.gz"))
    folder = archive.opened(str(packed))
    record = next((tmp_path / "mine").glob("runs/**/run.json"))
    record.write_text(record.read_text() + " ")
    with pytest.raises(UserError, match="differs from the archive"):
        archive.opened(str(packed))
    assert folder


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"results.csv": "mine"}, "differs from the archive"),
        ({"results.csv/x": "mine"}, "differs from the archive"),
        ({"runs/finetune/other/run.json": "{}"}, "a run that is not in the archive"),
        ({"": "mine"}, "is no folder"),
        ({"notes.txt": "mine"}, "differs from the archive"),
    ],
)
def test_nothing_that_was_there_is_written_over(small, tmp_path, there, message):
    packed = tmp_path / "mine.tar.gz"
    packed.write_bytes(small)
    for name, text in there.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=message):
        archive.opened(str(packed))
    assert everything(tmp_path) == before


def everything(folder):
    return {
        str(path.relative_to(folder)): path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The bytes of the archive of a study of four runs."""
    folder = tmp_path_factory.mktemp("small") / "study"
    write_study(folder, sizes=SIZES[:2], pools=(1_000,), rates=(0.005,))
    harvest.harvest(folder)
    return archive.export(str(folder)).read_bytes()


def member(name, content=b"{}", **fields):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, content


LINK, HARD, DEVICE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE
# A chain of long links is how tarfile's own filter was led out (CVE-2025-4517).
LONG = "d" * 247
CHAIN = [
    *(member(f"a/{'/'.join([LONG] * n)}", b"", type=tarfile.DIRTYPE) for n in range(1, 4)),
    member(f"a/{LONG}/l", b"", type=LINK, linkname=LONG),
    member("a/escape", b"", type=LINK, linkname=f"{LONG}/l/../../../../outside"),
    member("a/escape/victim", b"written"),
]


@pytest.mark.parametrize(
    "members",
    [
        [member("a/../../outside/victim")],
        [member("../outside/victim")],
        [member("/tmp/outside/victim")],
        [member("a//victim")],
        [member("a/./victim")],
        [member("a/x\\..\\victim")],
        [member("a/x\n/victim")],
        [member("a/\x1b[31mred")],
        [member("victim")],
        [member("..", b"", type=tarfile.DIRTYPE)],
        [member("a/run.json"), member("b/victim")],
        [member("a/run.json"), member("a/run.json", b"[]")],
        [member("a/x"), member("a/x/y")],
        [member("a/link", b"", type=LINK, linkname="../outside"), member("a/link/victim")],
        [member("a/link", b"", type=LINK, linkname="run.json")],
        [member("a/link", b"", type=HARD, linkname="a/run.json")],
        [member("a/link", b"", type=HARD, linkname="../outside/victim")],
        [member("a/null", b"", type=DEVICE, devmajor=1, devminor=3)],
        [member("a/pipe", b"", type=tarfile.FIFOTYPE)],
        [member("a/sparse", b"", type=tarfile.GNUTYPE_SPARSE)],
        [member("a/x", pax_headers={"path": "../outside/victim"})],
        [member("a/x", pax_headers={"comment": "x" * 2**21})],
        CHAIN,
    ],
    ids=range(23),
)
def test_an_archive_made_to_escape_changes_nothing(tmp_path, members):
    """Even with the list of digests that a whole one has."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/victim").write_text("as it was")
    (tmp_path / "here").mkdir()
    members = [member("a/runs/r/run.json"), *members]
    lines = [f"{hashlib.sha256(c).hexdigest()}  {e.name[2:]}\n" for e, c in members if e.isreg()]
    members.append(member(f"a/{archive.DIGESTS}", "".join(lines).encode()))
    packed = tmp_path / "here/a.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    before = everything(tmp_path)
    with pytest.raises(UserError) as refused:
        archive.opened(str(packed))
    assert "\n" not in str(refused.value) and str(packed) in str(refused.value)
    assert everything(tmp_path) == before


def test_a_small_archive_of_a_large_file_is_refused(tmp_path):
    packed = tmp_path / "bomb.tar.gz"
    large = archive.AT_LEAST + 1
    entry = tarfile.TarInfo("a/runs/r/run.json")
    entry.size = large
    with gzip.open(packed, "wb", compresslevel=1) as file:
        file.write(entry.tobuf())
        for _ in range(large // 2**20 + 1):
            file.write(bytes(2**20))
    assert packed.stat().st_size < 2**20
    with pytest.raises(UserError, match="unpacks to more than"):
        archive.opened(str(packed))
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.tar.gz"]


def test_too_many_files(small, tmp_path, monkeypatch):
    (tmp_path / "a.tar.gz").write_bytes(small)
    monkeypatch.setattr(archive, "MOST_FILES", 3)
    with pytest.raises(UserError, match="more than 3 files"):
        archive.opened(str(tmp_path / "a.tar.gz"))


def test_no_damage_is_taken_for_the_study(small, tmp_path):
    """One bit turned in 200 places, and 20 archives cut short: refused, or of the same content."""
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(small)
    whole = everything(Path(archive.opened(str(packed))))
    shutil.rmtree(tmp_path / "a")
    draw = random.Random(0)
    damaged = [small[: draw.randrange(len(small))] for _ in range(20)]
    for _ in range(200):
        place = draw.randrange(len(small))
        bit = bytes([small[place] ^ 1 << draw.randrange(8)])
        damaged.append(small[:place] + bit + small[place + 1 :])
    taken = 0
    for content in damaged:
        packed.write_bytes(content)
        try:
            archive.opened(str(packed))
        except UserError:
            assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
            continue
        taken += 1  # of the header's fields that say nothing of the content
        assert everything(tmp_path / "a") == whole
        shutil.rmtree(tmp_path / "a")
    assert taken < 5


@pytest.mark.parametrize("lost", ["results.csv", "runs/pretrain/en50_de50/DONE"])
def test_a_file_left_out_or_changed_is_noticed(small, tmp_path, lost):
    """Even where somebody packed the rest anew."""
    packed = tmp_path / "a.tar.gz"
    with tarfile.open(fileobj=io.BytesIO(small)) as before, tarfile.open(packed, "w:gz") as tar:
        for entry in before:
            if not entry.name.endswith(lost):
                tar.addfile(entry, before.extractfile(entry))
    with pytest.raises(UserError, match="not those that its SHA256SUMS lists"):
        archive.opened(str(packed))


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_no_place_of_the_machine_goes_along(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    folder = Path("my study")
    write_study(folder, sizes=SIZES[:2], pools=(1_000,), rates=(0.005,))
    given = str(folder.absolute() if form == "absolute" else folder)
    run = next(folder.glob("runs/finetune/**/run.json")).parent
    start = f"{given}/runs/pretrain/en50_de50/checkpoints/checkpoint_5"
    (run / "config.gin").write_text(
        f"MODEL_DIR = {given + '/runs/x'!r}\n# isn't the user's\nSTUDY_DIR = \\\n    {given!r}\n"
        f"INITIAL_CHECKPOINT_PATH = ({start[:20]!r}\n    {start[20:]!r})\n"
        "EXAMPLES_ROOT = '/home/jo/my examples/'\nMORE = {'a': \"gs://jo/b/c's.tsv\", 'b': 'a/b'}\n"
        "PROMPT = 'translate: '\n"
    )
    other = next(folder.glob("runs/pretrain/**/run.json")).parent
    (other / "DONE").unlink()
    text = f'File "{tmp_path}/t5scaling/x.py", line 3\nKeyError: /home/jo/x'
    (other / "FAILED").write_text(json.dumps({"reason": f"no {given}/runs/x", "traceback": text}))
    harvest.harvest(folder)
    opened = Path(archive.opened(str(archive.export(given, "elsewhere/a.tar.gz"))))
    for path in opened.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content, path
            assert b"/home" not in content and b"gs://" not in content, path
    config = next(opened.glob("runs/finetune/**/config.gin")).read_text()
    assert config == (
        "MODEL_DIR = 'runs/x'\n# isn't the user's\nSTUDY_DIR = \\\n    '.'\n"
        "INITIAL_CHECKPOINT_PATH = "
        "('runs/pretrain/en50_de50/checkpoints/checkpoint_5')\n"
        "EXAMPLES_ROOT = 'my examples'\nMORE = {'a': \"c's.tsv\", 'b': 'a/b'}\n"
        "PROMPT = 'translate: '\n"
    )


def test_gin_of_an_archive_is_never_run(small, tmp_path):
    """To report on a study needs none of its code: `report` loads no gin at all."""
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(small)
    code = (
        "import sys, run\nfrom t5scaling.analysis import archive, report\n"
        f"archive.opened({str(packed)!r})\n"
        "assert not {'gin', 't5scaling.config', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_a_study_without_run_directories(study, tmp_path):
    shutil.rmtree(study / "runs")
    packed = archive.export(str(study), str(tmp_path / "published.tar.gz"))
    opened = tmp_path / "published"
    assert archive.opened(str(packed)) == str(opened)
    before = (opened / "report.html").read_bytes()
    report.report(opened)
    assert (opened / "report.html").read_bytes() == before
