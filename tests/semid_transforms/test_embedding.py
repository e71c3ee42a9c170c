import numpy as np
import pyarrow as pa

from schemas.arrays import list_from_matrix
from schemas.tables import changed_schema, embedding_schema, origin_schema
from semid_transforms import files
from semid_transforms.embedding import embed_batch, find_embeddings, prepare_part, write_part

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
