"""A run's files that are not what they were: one line, the same whoever reads them."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from t5scaling import errors, records, storage
from t5scaling.analysis import archive, report
from t5scaling.analysis.results import harvest
from t5scaling.analysis.results.curves import read_results
from t5scaling.errors import UserError
from t5scaling.study import status
from t5scaling.training import run_directory, tracker
from tests.analysis_made_up_study import SIZES, write_run, write_study

# What a disk, a kill or a hand leaves in the place of a file.
DAMAGES = {
    "binary": b"\x80\x00\xff",
    "empty": b"",
    "a list": b"[]",
    "a number": b"1",
    "a text": b'"x"',
    "null": b"null",
    "deep": b"[" * 100_000,
    "digits": b'{"step": ' + b"9" * 5_000 + b"}",
    "half": b'{"id": "x", "st',
    "no keys": b"{}",
    "nulls for values": b'{"id": null, "step": null, "steps": null, "split": null, "runs": null}',
    "other types": b'{"id": [1], "step": "1", "steps": 1.5, "split": {}, "runs": "abc"}',
    "true for a number": b'{"id": "x", "steps": true, "step": true, "split": "train", "runs": [1]}',
    "a folder": None,
    "lines in a name": b'{"id": "a\\nb", "step": -1, "split": "a\\u2028b", "runs": [".."]}',
}


def damage(path, content):
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_study(folder, sizes=SIZES[:2], pools=(1_000,), rates=(0.005,))
    ids = [str(p.parent.relative_to(folder / "runs")) for p in folder.glob("runs/**/run.json")]
    (folder / "study.json").write_text(json.dumps({"study": "s", "runs": sorted(ids)}))
    harvest.harvest(folder)
    return folder


@pytest.fixture
def study(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "study")


def one_line(error, path):
    text = str(error.value)
    assert "\n" not in text and str(path) in text and len(text) < 500
    return True


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "timing.jsonl", "DONE", "FAILED"])
def test_a_file_of_a_run(study, name, content):
    path = next(study.glob("runs/finetune/**/run.json")).parent / name
    damage(path, content)
    for read in (harvest.harvest, lambda s: archive.export(str(s))):
        try:
            read(study)
        except UserError as error:
            assert "\n" not in str(error) and str(study) in str(error)
        else:  # what no number depends on, and what may be empty
            assert name in ("DONE", "FAILED") or (content == b"" and name == "timing.jsonl")
    found = {run.id: run for run in status.statuses(str(study))}
    assert len(found) == 3
    status.show(str(study))
    run_directory.fail(str(path.parent), ValueError("x")) if name != "FAILED" else None


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_the_list_and_the_log_of_a_study(study, content):
    damage(study / "study.json", content)
    with pytest.raises(UserError) as error:
        status.statuses(str(study))
    assert one_line(error, study / "study.json")
    if content != b"":
        damage(study / "runs.jsonl", content)
        with pytest.raises(UserError) as error:
            harvest.read_runs(study)
        assert one_line(error, study / "runs.jsonl")


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_run_that_goes_on(tmp_path, content):
    """Training never goes on over lines that it cannot read."""
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        content = b'{"step": 20, "split": "train"}\n' + content + b"\n"
    damage(path, content)
    before = content and path.read_bytes()
    blank = content and content.endswith(b"\n\n")
    with pytest.raises(UserError) as error:
        tracker.Tracker(str(tmp_path), 40, log_every=20)
    assert one_line(error, path)
    assert content is None or blank or path.read_bytes() == before


def test_metrics_lost_before_a_resume_are_missed(tmp_path):
    lines = [json.dumps({"step": step, "split": "train"}) + "\n" for step in range(20, 120, 20)]
    for lost in range(5):
        (tmp_path / "metrics.jsonl").write_text("".join(lines[:lost] + lines[lost + 1 :]))
        with pytest.raises(UserError, match=rf"metrics of 1 of the steps .*\({20 * lost + 20} is"):
            tracker.Tracker(str(tmp_path), 110, log_every=20)
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 120, "sp')
    tracker.Tracker(str(tmp_path), 110, log_every=20).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has lost the metrics of 5"):
        tracker.Tracker(str(tmp_path), 110, log_every=20)


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\r\n"])
def test_a_line_ends_with_a_newline_alone(study, end):
    reason = f"no{end}space"
    folder = write_run(study, 0, 1_000, 0.1, 0, cross_entropy=1.0, done=False, failure=reason)
    harvest.harvest(study)
    (found,) = (run for run in harvest.read_runs(study) if run.failure)
    assert found.failure == reason and records.failure(folder)["reason"] == reason
    assert errors.first_line(reason) == "no"
    log = (folder / "timing.jsonl").read_text()
    (folder / "timing.jsonl").write_text(log[:-2] + f', "note": "a{end}b"' + log[-2:])
    if end[0] != "\r" and end != "\x0b" and end != "\x0c" and end != "\x1c":
        assert records.timing(folder)[-1]["note"] == f"a{end}b"


@pytest.mark.parametrize("reason", ["", "\n", " \u2028 "])
def test_a_failure_without_a_reason_is_shown(study, reason):
    run = next(study.glob("runs/finetune/**/DONE"))
    run.with_name("FAILED").write_text(json.dumps({"reason": reason}))
    run.unlink()
    (found,) = (run for run in status.statuses(str(study)) if run.state == "failed")
    assert found.reason == "no reason given"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), r"1 of 2 .* \(no metrics.jsonl\)"),
        (lambda run: (run / "run.json").unlink(), "1 finished runs .* lost their run.json: fine"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "no evaluation in its metrics"),
        (
            lambda run: cut(run / "metrics.jsonl", '"step": 120', '"step": 60'),
            "evaluated at step 60, not at its last, 120",
        ),
        (lambda run: sealed(run, "9"), "is not what it was when the run ended"),
        (lambda run: shutil.copytree(run, run.with_name("copy")), "a copy of a run"),
        (
            lambda run: cut(run / "metrics.jsonl", '"bleu": 0', '"bleu": "0'),
            "not JSON|field 'bleu'",
        ),
    ],
)
def test_no_finished_run_vanishes(study, harm, message):
    harm(next(study.glob("runs/finetune/**/run.json")).parent)
    before = (study / "results.csv").read_bytes()
    for read in (harvest.harvest, report.report, lambda s: archive.export(str(s))):
        if "field" in message and read not in (harvest.harvest, report.report):
            continue
        with pytest.raises(UserError, match=message):
            read(study)
    assert (study / "results.csv").read_bytes() == before


def cut(path, before, after):
    path.write_text(path.read_text().replace(before, after))


def sealed(run, change):
    """As a run ends; then one figure of a number is another."""
    run_directory.finish(str(run), 120)
    harvest.harvest(next(p for p in run.parents if p.name == "runs").parent)
    text = (run / "metrics.jsonl").read_text()
    place = text.index('"cross_entropy": ') + len('"cross_entropy": 6.')
    (run / "metrics.jsonl").write_text(text[:place] + change + text[place + 1 :])


def test_a_run_directory_that_may_not_be_read(study, monkeypatch):
    (place,) = study.glob("runs/finetune/none")
    scan = os.scandir

    def scandir(path):
        if os.fspath(path) == str(place):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for read in (harvest.harvest, lambda s: archive.export(str(s))):
        with pytest.raises(UserError, match=f"cannot read {place}: Permission denied"):
            read(study)


def test_links_to_runs_count_and_circles_end(study):
    place = study / "runs/finetune/none"
    shutil.move(place, study / "elsewhere")
    os.symlink(study / "elsewhere", place)
    os.symlink(study / "runs", study / "runs/pretrain/circle")
    before = (study / "results.csv").read_bytes()
    assert harvest.harvest(study).read_bytes() == before


def test_what_is_not_done_is_named(study):
    ids = json.loads((study / "study.json").read_text())["runs"]
    (study / "study.json").write_text(json.dumps({"study": "s", "runs": [*ids, "finetune/more"]}))
    write_run(study, 0, 1_000, 0.1, 0, cross_entropy=1.0, done=False, failure="no")
    harvest.harvest(study)
    said = harvest.left_out(study, harvest.read_runs(study))
    assert said.startswith("2 of the study's 5 runs are not done and not in these results: ")
    assert "finetune/more (not begun)" in said and "seed=0 (failed)" in said
    assert "1 would be a further learning rate of a point that is shown" in said.replace(
        "Of these, ", ""
    )


def test_a_table_and_a_log_of_different_runs(study):
    table = study / "results.csv"
    text = table.read_text()
    shutil.rmtree(study / "runs")
    harvest.check_agree(read_results(table), study)
    header, first, *rest = text.splitlines()
    for changed, message in (
        ("\n".join([header, *(r for r in rest if ",0,techdoc" not in r)]), "no results of 1 runs"),
        (text.replace(",1000,128000,0.005", ",2000,128000,0.005"), "finetune_examples is 2000"),
        (text.replace("/seed=0", "/seed=1"), "no finished finetuning of that name"),
    ):
        table.write_text(changed)
        with pytest.raises(UserError, match=message):
            harvest.check_agree(read_results(table), study)
    column = header.split(",").index("value")
    other = first.split(",")
    other[column] = "77.0"
    table.write_text(f"{text}{','.join(other)}\n")
    with pytest.raises(UserError, match=r"lines 2 and \d+ are both .* with value = .* and 77.0"):
        read_results(table)
    table.write_text(f"{text}{first}\n")
    assert len(read_results(table)) == len(rest) + 1
    for damaged, message in (
        (f"{text}x\n", "expected 18 cells"), (f"{text}{first},x\n", "expected 18 cells"),
        (text.replace("0.005", "x"), "learning_rate = 'x'"), (b"\xff".decode("latin-1"), "column"),
        ('"', "column"),
    ):  # fmt: skip
        table.write_text(damaged)
        with pytest.raises(UserError, match=message):
            read_results(table)


def test_a_report_is_renewed_whatever_its_date(study):
    """Dates are compared for being the same: a report from tomorrow is as old as any."""
    assert not harvest.is_reported(study)
    (study / "report.html").write_text("")
    harvest.note_reported(study, harvest.state_of(study))
    os.utime(study / "report.html", (4e9, 4e9))
    assert harvest.is_reported(study)
    done = next(study.glob("runs/finetune/**/DONE"))
    os.utime(done, (1e9, 1e9))  # on a machine whose clock is behind
    assert not harvest.is_reported(study)
    (study / "report.json").write_text("{")
    assert not harvest.is_reported(study)


def test_what_files_allow_nobody_is_the_users_mistake(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for call in (
        lambda: storage.make_folder(tmp_path / "file/x"),
        lambda: storage.check_writable(tmp_path / "file"),
        lambda: storage.write(tmp_path / "no/x", ""),
        lambda: storage.write(tmp_path / ("x" * 300), ""),
        lambda: storage.read_text(tmp_path),
        lambda: storage.create(tmp_path / "file/x", b""),
    ):
        with pytest.raises(UserError, match=r"cannot \w+"):
            call()
    with pytest.raises(OSError) as error:
        open(tmp_path / "file/x")  # noqa: SIM115
    assert str(errors.file_mistake(error.value)) == f"{tmp_path / 'file/x'}: Not a directory"
    assert errors.file_mistake(FileNotFoundError(2, "x", "y")) is None
    storage.check_writable(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    assert storage._temporary("x" * 255) != storage._temporary("x" * 255)
    assert len(storage._temporary("x" * 255)) < 100


def test_writers_of_one_process_number_do_not_spoil_each_others_files(tmp_path):
    """As in two containers, where numbers repeat: threads have one number too."""
    path = tmp_path / "status.json"
    texts = [letter * 20_000 for letter in "abcd"]
    storage.write(path, texts[0])
    seen = set()

    def write(text):
        for _ in range(40):
            storage.write(path, text)
            seen.add(path.read_text())

    with ThreadPoolExecutor(len(texts)) as pool:
        for done in [pool.submit(write, text) for text in texts]:
            done.result()
    assert seen <= set(texts)
    assert list(tmp_path.iterdir()) == [path]
