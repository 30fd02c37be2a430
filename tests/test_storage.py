"""Locks, the cache folder, and amounts as text."""

import threading

import pytest

from t5scaling import amounts, storage
from t5scaling.errors import UserError


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_holds_a_lock_and_others_wait(tmp_path, kind):
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    seen, waits = [], threading.Event()

    def other():
        with storage.locked(place, waits.set):
            seen.append("other")

    def refuse():
        raise UserError("taken")

    with storage.locked(place, refuse):
        thread = threading.Thread(target=other)
        thread.start()
        assert waits.wait(10)
        with pytest.raises(UserError, match="taken"), storage.locked(place, refuse):
            pass
        seen.append("first")
    thread.join(10)
    assert seen == ["first", "other"]
    assert list(tmp_path.iterdir()) == ([place] if kind == "folder" else [])


def test_a_place_that_cannot_be_locked_is_named(tmp_path):
    place = tmp_path / "missing/file"
    refused = pytest.raises(UserError, match=r"cannot lock .*missing")
    with refused, storage.locked(place, lambda: None):
        pass


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert str(storage.cache_folder("made", "x")) == "/fast/t5scaling/made/x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(storage.cache_folder()) == "/home/somebody/.cache/t5scaling"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (2**50, "1024.00 TiB")]
)
def test_bytes_as_text(count, text):
    assert amounts.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.25, "250 ms"), (1, "1 s"), (90, "90 s"), (120, "2 min"), (7199, "120 min"),
        (7200, "2 h"), (86_400, "24 h"), (200_000, "2.31 days"),
    ],
)  # fmt: skip
def test_time_as_text(seconds, text):
    assert amounts.duration(seconds) == text
