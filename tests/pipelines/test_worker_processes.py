"""Workers on this machine: kept between pipelines, without timers, and what a failure says."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.worker.data_plane import TimeBasedBufferingClosableOutputStream

from pipelines.beam_options import PROCESSES, THREADS, build_options, keep_workers, run_pipeline
from pipelines.usage import total_usage
from pipelines.worker_processes import current_processes
from semid_transforms import coders

ELEMENTS = 16


def workers(mode: str) -> PipelineOptions:
    return build_options([f"--direct_running_mode={mode}", "--direct_num_workers=2"])


class Note(beam.DoFn):
    """Writes which process had an element, where and when."""

    def __init__(self, folder: Path):
        self._folder = folder

    def process(self, number: int) -> Iterable[tuple[int, bytes]]:
        said = [str(os.getpid()), os.getcwd(), os.environ.get("SEMID_SAID", "")]
        said += [repr(getattr(thread, "_function", "")) for thread in threading.enumerate()]
        (self._folder / str(number)).write_text("\n".join(said))
        if os.environ.get("SEMID_SAID") == "raise" and number == 5:
            raise ValueError("column brand: is not there\nset input.columns.brand")
        if os.environ.get("SEMID_SAID") == "die" and number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("SEMID_SAID") == "wait":
            time.sleep(600)
        yield number % 2, bytes(1000)


def run(options: PipelineOptions, folder: Path) -> list[list[str]]:
    def define(root: beam.Pipeline) -> None:
        spread = root | beam.Create(range(ELEMENTS)) | beam.Reshuffle()
        noted = spread | beam.ParDo(Note(folder)).with_output_types(tuple[int, bytes])
        noted | beam.GroupByKey() | beam.Map(len)

    run_pipeline(options, define)
    return [(folder / str(number)).read_text().split("\n") for number in range(ELEMENTS)]


def test_processes_are_kept_and_follow_folder_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = workers(PROCESSES)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with keep_workers(options):
        first = run(options, tmp_path)
        monkeypatch.setenv("SEMID_SAID", "later")
        monkeypatch.chdir(elsewhere)
        before = total_usage()
        second = run(options, tmp_path)
    processes = {said[0] for said in first}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    assert processes == {said[0] for said in second}
    assert {said[1] for said in second} == {str(elsewhere)}
    assert {said[2] for said in first} == {""}
    assert {said[2] for said in second} == {"later"}
    # Both workers' memory counted while they lived: each has imported more than 50 MiB.
    assert before[1] - total_usage()[1] > 2 * (50 << 20)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)
    assert options.view_as(DirectOptions).direct_running_mode == PROCESSES


def test_a_default_timeout_of_sockets_ends_no_worker(tmp_path: Path) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # as Beam's client of Google Cloud does
    try:
        assert len({said[0] for said in run(workers(PROCESSES), tmp_path)}) == 2
    finally:
        socket.setdefaulttimeout(before)


@pytest.mark.parametrize("mode", [PROCESSES, THREADS])
def test_no_timer_empties_buffers_at_either_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    timers: list[object] = []
    monkeypatch.setattr(
        TimeBasedBufferingClosableOutputStream,
        "_schedule_periodic_flush",
        lambda own: timers.append(own),
    )
    said = run(workers(mode), tmp_path)
    assert not timers
    assert not any("periodic_flush" in line for lines in said for line in lines)
    with beam.Pipeline(options=workers(THREADS)) as root:  # as Beam runs such workers
        root | beam.Create([1, 2]) | beam.Reshuffle() | beam.Map(lambda number: (number, 1))
    assert timers


@pytest.mark.parametrize("mode", [PROCESSES, THREADS])
def test_what_a_worker_raises_is_raised_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("SEMID_SAID", "raise")
    with pytest.raises(ValueError, match=r"^column brand: is not there\nset input\.columns"):
        run(workers(mode), tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_is_killed_ends_the_pipeline_and_the_next_one_has_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = workers(PROCESSES)
    with keep_workers(options):
        monkeypatch.setenv("SEMID_SAID", "die")
        with pytest.raises(RuntimeError, match="worker process ended before its work was done"):
            run(options, tmp_path)
        monkeypatch.delenv("SEMID_SAID")
        assert len({said[0] for said in run(options, tmp_path)}) == 2


def _halves(number: int) -> Iterable[tuple[int, pa.RecordBatch]]:
    yield number % 2, pa.record_batch({"number": [number] * 100_000})


def test_what_is_shuffled_passes_through_files_that_are_emptied(tmp_path: Path) -> None:
    options = workers(PROCESSES)

    def total(element: tuple[int, Iterable[pa.RecordBatch]]) -> None:
        key, batches = element
        numbers = [number for batch in batches for number in batch["number"].to_pylist()]
        assert coders._shared is not None
        laid_down = sum(os.fstat(each).st_size for each in coders._shared.descriptors)
        (tmp_path / str(key)).write_text(f"{len(numbers)} {sum(numbers)} {laid_down > 12_000_000}")

    def define(root: beam.Pipeline) -> None:
        spread = root | beam.Create(range(ELEMENTS)) | beam.Reshuffle()
        halves = spread | beam.FlatMap(_halves).with_output_types(tuple[int, pa.RecordBatch])
        halves | beam.GroupByKey() | beam.Map(total)

    with keep_workers(options):
        for _ in range(2):
            run_pipeline(options, define)
            assert (tmp_path / "0").read_text() == "800000 5600000 True"
            assert (tmp_path / "1").read_text() == "800000 6400000 True"
            files = current_processes().shuffled
            assert [os.fstat(file.fileno()).st_size for file in files] == [0, 0]
    assert all(file.closed for file in files)


def _without_room(number: int) -> Iterable[tuple[int, pa.RecordBatch]]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    yield from _halves(number)


def test_a_worker_that_can_write_nothing_any_more_says_so(tmp_path: Path) -> None:
    def define(root: beam.Pipeline) -> None:
        spread = root | beam.Create(range(ELEMENTS))
        halves = spread | beam.FlatMap(_without_room).with_output_types(tuple[int, pa.RecordBatch])
        halves | beam.GroupByKey() | beam.Map(len)

    with pytest.raises(OSError, match=r"what workers hand each other is kept in .* set TMPDIR"):
        run_pipeline(workers(PROCESSES), define)


STARTER = """
import signal, sys
from pathlib import Path
from tests.pipelines import test_worker_processes as own
from pipelines.beam_options import PROCESSES, keep_workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
options = own.workers(PROCESSES)
with keep_workers(options):
    own.run(options, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_at_once_with_the_process_that_started_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setenv("SEMID_SAID", "wait")
    with subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)]) as starter:
        while len(busy := list(tmp_path.iterdir())) < 2 or not all(p.read_text() for p in busy):
            assert starter.poll() is None
            time.sleep(0.05)
        processes = {int(path.read_text().split("\n")[0]) for path in busy}
        starter.send_signal(how)
        try:
            assert starter.wait(60) != 0
        finally:
            starter.kill()
    assert len(processes) == 2
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
