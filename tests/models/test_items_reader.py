import datetime
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from models.items_reader import InteractionReader, ReaderConfig
from models.sid_embedding import SemanticIdEmbedding


@pytest.fixture
def tables(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"item {number}/é" for number in range(50)]
    sids = rng.integers(2**60, 2**62, 50)
    bigrams = rng.integers(0, 90, (50, 2))
    spm = [rng.integers(0, 30, rng.integers(1, 4)).tolist() for _ in range(50)]
    items = pa.table(
        {
            "item_id": names,
            "placement": ["nearest"] * 50,
            "sid": pa.array(sids, pa.int64()),
            "bigram": pa.array(bigrams.tolist(), pa.list_(pa.int64())),
            "spm": pa.array(spm, pa.list_(pa.int64())),
        }
    )
    parts = [str(tmp_path / f"items-{part}.parquet") for part in range(3)]
    for part, path in enumerate(parts):
        pq.write_table(items.slice(part * 20, 20), path)
    picks = rng.integers(0, 60, 1000)
    day = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    interactions = pa.table(
        {
            "item_id": [names[pick] if pick < 50 else f"gone {pick}" for pick in picks],
            "label": pa.array(rng.random(1000), pa.float32()),
            "order": pa.array(np.arange(1000), pa.int32()),
            "timestamp": [day + datetime.timedelta(seconds=row) for row in range(1000)],
        }
    )
    path = str(tmp_path / "interactions.parquet")
    pq.write_table(interactions, path, row_group_size=150)
    return parts, path, picks, sids, bigrams, spm


def read(tables, workers=0):
    parts, path, *_ = tables
    config = ReaderConfig(("sid", "bigram", "spm"), ("order", "label", "timestamp"), batch_size=64)
    reader = InteractionReader(parts, [path], config)
    return list(DataLoader(reader, batch_size=None, num_workers=workers))


def test_every_interaction_meets_its_item(tables):
    *_, picks, sids, bigrams, spm = tables
    batches = read(tables)
    order = torch.cat([batch["order"] for batch in batches]).numpy()
    np.testing.assert_array_equal(order, np.flatnonzero(picks < 50))
    assert sum(batch["num_unknown"] for batch in batches) == (picks >= 50).sum()
    for batch in batches:
        items = picks[batch["order"].numpy()]
        assert batch["sid"].dtype == torch.int64
        np.testing.assert_array_equal(batch["sid"], sids[items])
        np.testing.assert_array_equal(batch["bigram"], bigrams[items])
        values, offsets = batch["spm"]
        assert [values[start:stop].tolist() for start, stop in itertools.pairwise(offsets)] == [
            spm[item] for item in items
        ]
        start = int(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp() * 1e6)
        assert ((batch["timestamp"] - start) / 1e6).int().tolist() == batch["order"].tolist()


def test_workers_share_the_file(tables):
    *_, picks, _, _, _ = tables
    order = torch.cat([batch["order"] for batch in read(tables, workers=2)]).sort().values
    np.testing.assert_array_equal(order, np.flatnonzero(picks < 50))


def test_a_model_trains_on_it(tables):
    module = SemanticIdEmbedding({"bigram": 90, "spm": 30}, 1)
    batch = read(tables)[0]
    loss = (module(batch).squeeze(1) - batch["label"]).square().mean()
    loss.backward()
    assert module.tables["spm"].weight.grad.abs().sum() > 0


def test_nulls_and_text_are_refused(tables, tmp_path):
    parts, path, *_ = tables
    with pytest.raises(ValueError, match="column placement holds string: only numbers"):
        next(iter(InteractionReader(parts, [path], ReaderConfig(("placement",)))))
    holes = str(tmp_path / "holes.parquet")
    pq.write_table(
        pa.table({"item_id": ["item 1/é"], "label": pa.array([None], pa.int64())}), holes
    )
    with pytest.raises(ValueError, match="column label has 1 nulls"):
        next(iter(InteractionReader(parts, [holes], ReaderConfig((), ("label",)))))


def test_no_known_item_gives_an_empty_batch(tables, tmp_path):
    parts, *_ = tables
    strangers = str(tmp_path / "strangers.parquet")
    pq.write_table(pa.table({"item_id": ["a", "b"], "label": [1, 0]}), strangers)
    config = ReaderConfig(("sid", "bigram"), ("label",))
    batch = next(iter(InteractionReader(parts, [strangers], config)))
    assert batch["num_unknown"] == 2 and len(batch["sid"]) == len(batch["label"]) == 0
