"""A study packed, opened elsewhere and reported again."""

import io
import shutil
import tarfile

import pytest

from t5scaling.analysis import archive, report
from t5scaling.errors import UserError
from tests.analysis_made_up_study import write_study


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported") / "study"
    write_study(folder)
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
    junk = tmp_path / "junk.tar.gz"
    junk.write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be unpacked"):
        archive.opened(str(junk))
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("other/file"), io.BytesIO(b""))
    with pytest.raises(UserError, match="no archive of a study"):
        archive.opened(str(tmp_path / "other.tar.gz"))
    with pytest.raises(UserError, match=r"ends in \.tar\.gz"):
        archive.export(str(study), str(tmp_path / "a.zip"))
    packed = archive.export(str(study), str(tmp_path / "mine.tar.gz"))
    folder = archive.opened(str(packed))
    record = next((tmp_path / "mine").glob("runs/**/run.json"))
    record.write_text(record.read_text() + " ")
    with pytest.raises(UserError, match="differs from the archive"):
        archive.opened(str(packed))
    assert folder


def test_a_study_without_run_directories(study, tmp_path):
    shutil.rmtree(study / "runs")
    packed = archive.export(str(study), str(tmp_path / "published.tar.gz"))
    opened = tmp_path / "published"
    assert archive.opened(str(packed)) == str(opened)
    before = (opened / "report.html").read_bytes()
    report.report(opened)
    assert (opened / "report.html").read_bytes() == before
