import numpy as np
import pyarrow as pa
import pytest

from schemas.arrays import list_from_matrix
from schemas.config import EncoderConfig
from schemas.tables import changed_schema, embedding_schema, origin_schema
from semid_transforms import files
from semid_transforms.embedding import embed_batch, find_embeddings, prepare_part, write_part
from semid_transforms.encoder import SentenceEncoder, identify_encoder

SIDS = pa.int64()
PART = "part-000001-00000.parquet"


def digest(content):
    return content.encode().ljust(16, b".")


def changed(*rows):
    """Rows of (item id, content)."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "item_id": name,
                "content_hash": digest(content),
                "text": content,
                "source": "file",
                "split": 0,
                "row": number,
                "change": "new",
            }
            for number, (name, content) in enumerate(rows)
        ],
        changed_schema(SIDS),
    )


class Counting:
    """An encoder that notes what it was asked to encode."""

    embedding_dim = 2

    def __init__(self):
        self.texts = []

    def encode(self, texts):
        self.texts += texts
        return np.array([[len(text), ord(text[0])] for text in texts], np.float32).reshape(-1, 2)


def known_part(folder, contents):
    path = str(folder / "part-000000-00000.parquet")
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(contents),
            pa.array([digest(content) for content in contents], pa.binary(16)),
            list_from_matrix(np.full((len(contents), 2), 9, np.float32), pa.float32()),
        ],
        schema=embedding_schema(),
    )
    files.write_table(path, embedding_schema(), [batch], row_group_rows=2)
    return path


def test_each_content_is_encoded_once_and_known_ones_never(tmp_path):
    rows = changed(("1", "pan"), ("2", "pot"), ("3", "pan"), ("4", "wok"), ("5", "lid"))
    known = [known_part(tmp_path, ["cup", "pot", "mug", "wok", "jug"])]
    encoder = Counting()
    batch = embed_batch(prepare_part(rows, PART, known), encoder)
    assert encoder.texts == ["lid", "pan"]
    vectors = dict(zip(batch["item_id"].to_pylist(), batch["embedding"].to_pylist(), strict=True))
    pan, lid = [3.0, float(ord("p"))], [3.0, float(ord("l"))]
    assert vectors == {"1": pan, "2": [9, 9], "3": pan, "4": [9, 9], "5": lid}
    assert batch["content_hash"].to_pylist() == sorted(rows["content_hash"].to_pylist())


def test_a_part_does_not_depend_on_the_order_of_its_rows():
    rows = changed(*[(f"i{n}", f"content {n % 7}") for n in range(20)])
    mixed = rows.take(pa.array(np.random.default_rng(0).permutation(20)))
    one, two = (
        prepare_part(
            r.drop_columns(["row"]).append_column("row", rows["row"]).select(rows.schema.names),
            PART,
        )
        for r in (rows, mixed)
    )
    assert one.equals(two)


def test_embeddings_are_found_by_content_wherever_they_are(tmp_path):
    path = known_part(tmp_path, [f"c{n}" for n in range(9)])
    hashes = pa.array([digest(name) for name in ("c8", "nowhere", "c0", "c3")], pa.binary(16))
    found = find_embeddings([path], hashes)
    assert found.to_pylist() == [[9, 9], None, [9, 9], [9, 9]]
    assert find_embeddings([], hashes).null_count == 4


def test_a_part_is_done_when_its_origin_is_there(tmp_path, monkeypatch):
    batch = embed_batch(prepare_part(changed(("1", "pan"), ("2", "pot")), PART), Counting())
    write, order = files.write_table, []

    def noted(path, *arguments):
        order.append(path.split("/")[-2])
        return write(path, *arguments)

    monkeypatch.setattr(files, "write_table", noted)
    assert write_part(batch, str(tmp_path / "embeddings"), str(tmp_path / "origin")) == PART
    assert order == ["embeddings", "origin"]
    embeddings = files.read_table(str(tmp_path / "embeddings" / PART))
    origin = files.read_table(str(tmp_path / "origin" / PART))
    assert embeddings.schema.equals(embedding_schema())
    assert origin.schema.equals(origin_schema(SIDS))
    assert embeddings.num_rows == origin.num_rows == 2


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return SentenceEncoder(EncoderConfig(model=tiny_model, batch_size=4, precision="float32"))


TEXTS = ["espresso machine", "wok", "a b c " * 50, "", "dutch oven in forest green"]


def test_the_encoder_keeps_order_and_length(encoder):
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)
    assert encoder.encode([]).shape == (0, 32)


def test_a_huge_text_costs_no_more_than_its_beginning(encoder):
    start = "stock pot " * 2000
    np.testing.assert_array_equal(
        encoder.encode([start + "x" * (10 << 20)]), encoder.encode([start + "y" * 100])
    )


def test_an_encoder_is_known_by_its_files_and_what_changes_vectors(tiny_model, other_model):
    def fingerprint(**settings):
        return identify_encoder(EncoderConfig(**{"model": tiny_model, **settings})).fingerprint

    same = fingerprint()
    assert fingerprint(batch_size=7, rows_per_part=64) == same
    assert len({same, fingerprint(model=other_model), fingerprint(max_length=16)}) == 3
    assert fingerprint(normalize=False) != same
    with pytest.raises(ValueError, match="no folder /nowhere"):
        identify_encoder(EncoderConfig(model="/nowhere"))
