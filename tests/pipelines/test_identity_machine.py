"""Any sequence of full runs and backfills keeps every promise about identity.

Contents are few, so that items share them and compete; codebooks are small, so that prefixes fill
up, items spill and suffixes are needed; shards are small, so that several are involved.
"""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipelines.backfill import NothingToDo
from pipelines.garbage import find_garbage, remove_garbage
from pipelines.root import Root
from tests.pipelines import jobs

NAMES = [f"n{n}" for n in range(20)]
CONTENTS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9), min_size=1, max_size=6)
ON_CHANGE = st.sampled_from(["keep", "reassign"])
RELEASE_AFTER = 3
THREADS = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")


class Identity(RuleBasedStateMachine):
    """What is live, whose each ID is, and which generation reserved it, as the outside knows it."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="semid-identity-"))
        self.root = self.folder / "root"
        self.live = {}
        self.before = {}
        self.held = {}
        self.sids = {}
        self.releasing = False
        self.checked = True

    def teardown(self):
        shutil.rmtree(self.folder)

    def config(self, on_change, rows_per_shard=16):
        return {
            "quantizer": {"kind": "rqkmeans", "iterations": 3, "codebook_sizes": [4, 2, 2]},
            "collisions": {"on_change": on_change},
            "shards": {"rows_per_shard": rows_per_shard, "max_stale_share": 0.3},
        }

    def write(self, contents, order):
        rows = jobs.shuffled(jobs.vector_rows(contents), order)
        return jobs.write_rows(self.folder / "given.parquet", rows)

    def step(self, on_change):
        """Remembers what the next step may change."""
        self.before, self.held = self.sids, jobs.reserved(self.root) if self.sids else {}
        self.on_change, self.was, self.checked = on_change, dict(self.live), False

    @initialize(contents=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9), min_size=8))
    def first_night(self, contents):
        self.step("keep")
        self.live = contents
        jobs.run(self.write(contents, 1), self.root, self.config("keep"))

    @rule(
        changed=CONTENTS,
        gone=st.sets(st.sampled_from(NAMES), max_size=5),
        on_change=ON_CHANGE,
        order=st.integers(0, 99),
        rows_per_shard=st.sampled_from([16, 1000]),
        release=st.booleans(),
    )
    def night(self, changed, gone, on_change, order, rows_per_shard, release):
        self.step(on_change)
        self.live |= changed
        for name in gone:
            if len(self.live) > 3:
                self.live.pop(name, None)
        config = self.config(on_change, rows_per_shard)
        self.releasing = release
        if release:
            config["collisions"]["release_after"] = RELEASE_AFTER
        jobs.run(self.write(self.live, order), self.root, config)
        parts = Root(str(self.root)).require_published()[1].files
        assert not [part.path for part in parts if "/delta-" in part.path]

    @rule(changed=CONTENTS, on_change=ON_CHANGE, order=st.integers(0, 99), threads=st.booleans())
    def backfill(self, changed, on_change, order, threads):
        self.step(on_change)
        self.releasing = False
        current = jobs.current(self.root)
        config = {"collisions": {"on_change": on_change, "release_after": None}}
        catalog = self.write(changed, order)
        outcome = jobs.add(catalog, self.root, config, THREADS if threads else ())
        unchanged = all(self.live.get(name) == content for name, content in changed.items())
        assert isinstance(outcome, NothingToDo) == unchanged
        assert (jobs.current(self.root) == current) == unchanged
        self.live |= changed

    @rule(keep=st.integers(1, 3))
    def collect(self, keep):
        current = jobs.current(self.root)
        remove_garbage(Root(str(self.root)), find_garbage(Root(str(self.root)), keep, 0))
        assert jobs.current(self.root) == current
        assert len(list((self.root / "generations").iterdir())) <= keep

    @invariant()
    def every_promise_holds(self):
        if self.checked or not self.live:
            return
        self.checked = True
        jobs.assert_sound(self.root)
        self.sids, said = jobs.sids(self.root), jobs.changes(self.root)
        reserved = jobs.reserved(self.root)
        assert set(self.sids) == set(self.live)
        assert len(set(self.sids.values())) == len(self.sids)
        assert not set(reserved) & set(self.sids.values())
        for name, sid in self.before.items():
            if name not in self.live:
                assert reserved[sid] == name
            elif self.sids[name] != sid:
                assert self.on_change == "reassign" and self.was[name] != self.live[name]
                assert said[name] == ("moved", sid, self.sids[name])
                assert reserved[sid] == name
        for sid, name in self.held.items():
            kept = reserved.get(sid) == name or self.sids.get(name) == sid
            assert kept or self.releasing, "a reserved ID was lost"


Identity.TestCase.settings = settings(
    max_examples=3,
    stateful_step_count=5,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestIdentity = Identity.TestCase
