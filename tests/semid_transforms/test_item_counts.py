from collections import Counter

import numpy as np
import pyarrow as pa

from models.metrics import collisions
from semid_transforms import files
from semid_transforms.item_counts import count_contents, count_items

SCHEMA = pa.schema(
    [
        pa.field("sid", pa.int64()),
        pa.field("codes", pa.list_(pa.int32())),
        pa.field("base_codes", pa.list_(pa.int32())),
        pa.field("content_hash", pa.binary(16)),
        pa.field("placement", pa.string()),
    ]
)


def row(base, codes, content, placement):
    sid = codes[0] * 4 + codes[1]
    return dict(zip(SCHEMA.names, (sid, codes, base, content * 16, placement), strict=True))


def test_items_are_counted_over_all_parts(tmp_path):
    rows = [
        row([0, 1], [0, 1], b"a", "nearest"),
        row([0, 1], [0, 2], b"b", "reassigned"),
        row([2, 3], [0, 3], b"a", "spilled"),
        row([0, 1], [2, 0], b"\0", "spilled"),
        row([2, 3], [2, 3], b"c", "nearest"),
    ]
    parts = []
    for number, part in enumerate((rows[:2], [], rows[2:])):
        parts.append(str(tmp_path / f"{number}.parquet"))
        files.write_table(parts[-1], SCHEMA, [pa.RecordBatch.from_pylist(part, SCHEMA)])
    counts = count_items(parts, (3, 4))
    assert counts.items == 5
    assert counts.placements == {"nearest": 2, "reassigned": 1, "spilled": 2}
    for counted, column in ((counts.before, "base_codes"), (counts.after, "codes")):
        codes = np.array([row[column] for row in rows])
        assert counted.collisions == collisions(codes)
        use = [np.bincount(codes[:, level], minlength=size) for level, size in ((0, 3), (1, 4))]
        assert [list(level) for level in counted.use] == [list(level) for level in use]
    assert counts.before.collisions["largest"] == 3
    assert counts.shared_sids["largest"] == 1
    assert counts.distinct_contents == 4
    assert counts.contents == collisions(np.array([0, 1, 0, 2, 3]))


def test_contents_that_share_half_a_hash_are_told_apart():
    rng = np.random.default_rng(1)
    for rows in (0, 1, 500):
        hashes = rng.integers(0, 9, (rows, 2)).astype(np.uint64)
        expected = Counter(map(tuple, hashes.tolist()))
        assert sorted(count_contents(hashes)) == sorted(expected.values())
