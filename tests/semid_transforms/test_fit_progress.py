import io
import logging
import sys

import pytest

from semid_transforms.fit_progress import report_progress

LOOK = {"loss": 0.5, "error": 0.41, "colliding": 0.125, "use": 0.99}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def watched(caplog):
    caplog.set_level(logging.INFO, "semid_transforms.fit_progress")
    return caplog


def look_twice():
    with report_progress(None, "run") as progress:
        progress(100, 200, LOOK)
        progress(200, 200, {**LOOK, "loss": 0.25})


def test_a_log_gets_the_last_look(watched):
    look_twice()
    assert [record.getMessage() for record in watched.records] == [
        "fit      step 200 of 200  loss 0.25  1-R2 0.4100  codes in use 99%  colliding 12.5%"
    ]


def test_a_terminal_gets_a_bar(watched, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "160")
    look_twice()
    shown = sys.stderr.getvalue()
    assert "200/200" in shown and "loss 0.25" in shown
    assert "codes in use 99%" in shown and "colliding 12.5%" in shown
    assert not watched.records


def test_nothing_is_shown_when_quiet(caplog, monkeypatch):
    caplog.set_level(logging.WARNING, "semid_transforms.fit_progress")
    monkeypatch.setattr(sys, "stderr", Terminal())
    look_twice()
    assert not sys.stderr.getvalue() and not caplog.records


def test_tensorboard_gets_every_look(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with report_progress(str(tmp_path), "run") as progress:
        progress(100, 200, LOOK)
        progress(200, 200, LOOK)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [100, 200]
    assert set(events.Tags()["scalars"]) == set(LOOK)
