"""kill -9 at every change of the disk: what is published stays, and the next run loses nothing."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from pipelines.root import Root
from pipelines.runs import Run
from pipelines.verify import verify
from tests.pipelines import jobs
from tests.pipelines.processes import run_killed, watching

CONFIG = {
    "quantizer": {"kind": "rqkmeans", "iterations": 3, "codebook_sizes": [8, 8, 8]},
    "input": {"max_reject_share": 0.1},
    "shards": {"rows_per_shard": 40},
}


@dataclasses.dataclass(frozen=True)
class Instant:
    """A moment of a run.

    Attributes:
      start: copy of the root as it was when the link began in which it lies.
      number: how many instants a run that starts there has before it.
      event: what just happens.
    """

    start: Path
    number: int
    event: str

    @property
    def kind(self) -> str:
        """Before or after what."""
        return " ".join(self.event.split()[:2])


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A run that nobody kills.

    Attributes:
      catalog: that it read.
      before: CURRENT before it.
      instants: all of them, in order.
      left: what it left.
    """

    catalog: str
    before: bytes | None
    instants: list[Instant]
    left: dict[str, bytes]


def contents(root):
    """Returns {path: bytes} under a root, without the lock of CURRENT.

    Half-written files outside generations are left out too: `semid gc` finds those.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        half_written = path.suffix == ".tmp" and not name.startswith("generations/")
        if path.is_file() and name != ".CURRENT.lock" and not half_written:
            found[name] = path.read_bytes()
    return found


def undisturbed(folder, catalog, root):
    """Runs on a root and copies the root each time a link begins."""
    starts, instants = [], []

    def remember():
        starts.append(shutil.copytree(root, folder / f"start-{len(starts)}"))

    def linking(self, name, work):
        result = link(self, name, work)
        remember()
        return result

    def instant(event):
        number = sum(1 for other in instants if other.start == starts[-1])
        instants.append(Instant(starts[-1], number, event))

    link, before = Run.link, jobs.current(root)
    root.mkdir(exist_ok=True)
    remember()
    with pytest.MonkeyPatch.context() as patch, watching(root, instant):
        patch.setattr(Run, "link", linking)
        jobs.run(catalog, root, CONFIG)
    return Undisturbed(catalog, before, instants, contents(root))


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Two nights that nobody disturbs; every kind of change happens in the second."""
    folder = tmp_path_factory.mktemp("kills")
    rows = jobs.vector_rows({f"item-{n:02d}": f"content {n % 50}" for n in range(60)})
    first = jobs.write_rows(folder / "first.parquet", rows)
    new = jobs.vector_rows({"item-07": "changed", "late": "late", "bad": "bad"})
    new[-1]["embedding"] = [0.0] * jobs.DIMENSIONS
    second = jobs.write_rows(folder / "second.parquet", [*rows[3:7], *rows[8:], *new])
    root = folder / "root"
    return {
        "first": undisturbed(tmp_path_factory.mktemp("first"), first, root),
        "nightly": undisturbed(tmp_path_factory.mktemp("nightly"), second, root),
    }


LINKS = ("read", "embed", "fit", "assign", "place", "index", "publish")


def chosen(night):
    """Returns an instant of every link, two of a nightly's, each kind of change, and the swap.

    Each costs a run, so not every one of the nearly 400 is tried.
    """
    first = night.before is None
    numbers, kinds = set(), set()
    for start in {instant.start for instant in night.instants}:
        link = [n for n, instant in enumerate(night.instants) if instant.start == start]
        numbers |= {link[len(link) // 2]} if first else {link[len(link) // 3], link[-2]}
    for number, instant in enumerate(night.instants):
        if not (first or instant.kind in kinds) or instant.event.endswith("replace CURRENT"):
            numbers.add(number)
        kinds.add(instant.kind)
    return [night.instants[number] for number in sorted(numbers)]


def test_the_instants_cover_the_whole_run(nights, record_property):
    picked = [instant for night in nights.values() for instant in chosen(night)]
    record_property("instants", len(picked))
    assert len(picked) >= 30
    for night in nights.values():
        assert len({instant.start for instant in chosen(night)}) == len(LINKS)
        swap = [i for i in chosen(night) if i.event.endswith("replace CURRENT")]
        assert [i.event for i in swap] == ["before replace CURRENT", "after replace CURRENT"]
    both = {f"{w} {what}" for w in ("before", "after") for what in ("open", "replace", "link")}
    # Nothing but folders is there to be removed.
    assert {instant.kind for instant in picked} == {*both, "before remove", "before unlink"}


@pytest.mark.parametrize("link", range(len(LINKS)), ids=LINKS)
@pytest.mark.parametrize("name", ["first", "nightly"])
def test_a_killed_run_loses_nothing(nights, tmp_path, name, link):
    night = nights[name]
    published = night.left["CURRENT"]
    starts = sorted({instant.start for instant in night.instants})
    for instant in chosen(night):
        if instant.start != starts[link]:
            continue
        root = tmp_path / "root"
        shutil.copytree(instant.start, root)
        assert run_killed(night.catalog, root, CONFIG, instant.number) == -9, instant
        swapped = starts[link] == starts[-1] and jobs.current(root) == published
        assert swapped or jobs.current(root) == night.before, instant
        if jobs.current(root) is not None:
            assert verify(Root(str(root))).problems == [], instant
        if swapped:
            left = {k: v for k, v in contents(root).items() if not k.startswith("runs/")}
        else:
            jobs.run(night.catalog, root, CONFIG)
            left = contents(root)
        assert left.keys() == night.left.keys(), instant
        assert left == night.left, instant
        assert verify(Root(str(root))).problems == [], instant
        shutil.rmtree(root)
