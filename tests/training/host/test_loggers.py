"""Where else records go: CSV, TensorBoard and loggers of the user's own, none of which can hurt."""

import csv
import importlib.util
import json
import threading

import pytest
from support import own

from dh2l_jax.training.config import Config, override, same_run
from dh2l_jax.training.config.conflicts import refuse_conflicts
from dh2l_jax.training.host.loggers import Loggers, check_loggers

EPOCHS = [
    {"epoch": 1, "step": 3, "J": 2.5},
    {"epoch": 2, "step": 6, "J": 2.0, "accuracy": [1.0, None], "split": "=validation"},
    {"epoch": 3, "step": 9, "J": 1.5},
]
LAST = {"epoch": 3, "step": 9, "accuracy": [0.5, 0.25]}


def logged(names, workdir, *parts):
    """What is printed where loggers see parts of a run: (records before, records after)."""
    lines = []
    with Loggers(names, workdir, {"seed": 1}, lines.append) as loggers:
        for before, after in parts:
            loggers.start(before)
            for record in after:
                loggers.log(record)
    return lines


def table(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "parts",
    [
        [([], [*EPOCHS, LAST])],
        [([], EPOCHS[:2]), (EPOCHS[:1], [*EPOCHS[1:], LAST])],  # a roll-back
        [(EPOCHS, [LAST])],
    ],
    ids=["at once", "rolled back", "gone on"],
)
def test_a_csv_file_has_a_row_an_epoch(tmp_path, parts):
    assert logged(("csv",), tmp_path, *parts) == []
    rows = table(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["J"] for row in rows] == ["2.5", "2.0", "1.5"]
    assert [row["accuracy_1"] for row in rows] == ["", "1.0", "0.5"]
    assert [row["accuracy_2"] for row in rows] == ["", "", "0.25"]
    assert rows[1]["split"] == "'=validation"  # no formula for a spreadsheet


def events(folder):
    """The events of TensorBoard's files, by the format of their records."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_tensorboard_has_a_curve_a_number(tmp_path):
    assert logged(("tensorboard",), tmp_path, ([], EPOCHS), (EPOCHS[:1], EPOCHS[1:])) == []
    found = list(events(tmp_path / "tensorboard"))
    points = [(v.tag, e.step, v.simple_value) for e in found for v in e.summary.value]
    assert ("J", 3, 2.5) in points
    assert ("accuracy_1", 6, 1.0) in points
    assert not {"split", "accuracy_2", "step"} & {tag for tag, *_ in points}
    starts = [e.step for e in found if e.session_log.status == e.session_log.START]
    assert 4 in starts  # what came later than step 3 is dropped


def test_a_logger_of_ones_own_sees_the_run_and_every_record(tmp_path):
    own.Recorder.seen.clear()
    assert logged(("support.own:Recorder",), tmp_path, (EPOCHS[:1], EPOCHS[1:])) == []
    began = ("began", tmp_path, {"seed": 1}, EPOCHS[:1])
    assert own.Recorder.seen == [began, EPOCHS[1], EPOCHS[2], "closed"]


@pytest.mark.parametrize("name", ["broken_at_once", "BrokenLater"])
def test_a_logger_that_fails_is_left_out_and_said_once(tmp_path, name):
    lines = logged((f"support.own:{name}", "csv"), tmp_path, ([], EPOCHS))
    assert lines == [
        f"the logger support.own:{name} fails and is left out: "
        + {
            "broken_at_once": "ValueError: support.own:broken_at_once: OSError: no server",
            "BrokenLater": "OSError: the line is cut",
        }[name]
    ]
    assert len(table(tmp_path)) == 3


def test_nothing_waits_for_a_slow_logger(tmp_path):
    own.Slow.go_on = threading.Event()
    with Loggers(("support.own:Slow",), tmp_path, {}, print) as loggers:
        loggers.start([])
        for record in EPOCHS:
            loggers.log(record)  # returns while the logger hangs at its first record
        assert own.Slow.done == 0
        own.Slow.go_on.set()
    assert own.Slow.done == 3


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cvs", "unknown logger 'cvs': did you mean 'csv'?"),
        ("csv; support.owl:x", "loggers=support.owl:x: there is no module 'support.owl' here"),
        ("tensorboard", r"needs tensorboardX: pip install 'dh2l_jax\[tensorboard\]'"),
    ],
)
def test_a_logger_that_is_not_there_is_refused(monkeypatch, text, line):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=line):
        refuse_conflicts(override(Config(), f"loggers={text}"))


def test_loggers_make_no_other_run():
    check_loggers(("csv", "tensorboard"))
    assert same_run(override(Config(), "loggers=csv"), Config()) is None
    assert json.loads(json.dumps(override(Config(), "loggers=csv; tensorboard").loggers)) == [
        "csv",
        "tensorboard",
    ]
