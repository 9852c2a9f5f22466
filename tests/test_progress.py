"""Bars are shown where a command asks, one at a time, and change nothing of what is tracked."""

import sys

from tuwen.progress import bars, batches, track


def test_bars_show_only_where_asked_and_only_the_outer_one(monkeypatch, capsys):
    assert list(track(range(3), "quiet", 3)) == [0, 1, 2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bars():
        assert [list(track(range(k), "inner", k)) for k in track(range(3), "outer", 3)] == [[], [0], [0, 1]]
        assert list(track("ab", "after", 2)) == ["a", "b"]
    with bars(False):
        assert list(track("ab", "hidden", 2)) == ["a", "b"]
    shown = capsys.readouterr().err
    assert "outer" in shown
    assert "after" in shown
    assert not any(word in shown for word in ("quiet", "inner", "hidden"))


def test_batches():
    assert [batches(rows, 4) for rows in (0, 1, 4, 5)] == [0, 1, 1, 2]
