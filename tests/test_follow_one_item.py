"""One catalog row through every table, as the README tells it.

Run with `-s` to print the table.
"""

import hashlib
import html
import json
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import safetensors.numpy

from pipelines.root import Root
from pipelines.settings import parse_settings
from semid_transforms.encoder import SentenceEncoder
from semid_transforms.quantizing import load_tokenizer
from tests.pipelines import jobs

CONFIG = {"quantizer": {"kind": "rqkmeans", "codebook_sizes": [8, 8, 8]}, "gates": {}}


def test_follow_one_item(tmp_path):
    """The embedded encoder on 60 products; every step is computed again by hand."""
    rows = jobs.products(60)
    row = next(row for row in rows if row["brand"] and "<p>" in (row["description"] or ""))
    catalog = jobs.write_rows(tmp_path / "catalog.jsonl", rows)
    outcome = jobs.run(catalog, tmp_path / "root", CONFIG)
    generation = tmp_path / "root" / "generations" / outcome.manifest.generation

    def find(table, **wanted):
        found = [
            candidate
            for path in sorted((generation / table).glob("*.parquet"))
            for candidate in pq.read_table(path).to_pylist()
            if all(candidate[name] == value for name, value in wanted.items())
        ]
        assert len(found) == 1
        return found[0]

    # catalog row -> text: title, brand, category path, description, as sentences without markup
    plain = html.unescape(re.sub(r"<[^>]+>", " ", row["description"]))
    parts = [row["title"], row["brand"], " > ".join(row["category_path"]), plain]
    text = ". ".join(" ".join(part.split()) for part in parts)

    # text -> content hash
    digest = hashlib.blake2b(text.encode(), digest_size=16, person=b"semid text").digest()
    snapshot = find("catalog", item_id=row["item_id"])
    assert snapshot["content_hash"] == digest
    assert snapshot["category_path"] == row["category_path"]

    # text -> embedding
    embedding = np.array(find("embeddings", item_id=row["item_id"])["embedding"], np.float32)
    assert embedding.shape == (384,)
    assert abs(np.linalg.norm(embedding) - 1) < 1e-5
    alone = SentenceEncoder(parse_settings(CONFIG).job.encoder).encode([text])[0]
    assert embedding @ alone > 0.999  # the texts of its batch moved it by rounding only

    # embedding -> base codes: the nearest codeword of each level, what remains goes on
    item = find("items", item_id=row["item_id"])
    quantizer = load_tokenizer(
        Root(str(tmp_path / "root")).tokenizer_folder(outcome.manifest.fingerprints.tokenizer)
    )
    rest = quantizer.latents(embedding[None])[0].astype(np.float64)
    base = []
    for codebook in quantizer.codebooks:
        base.append(int(np.square(rest - codebook).sum(axis=1).argmin()))
        rest -= codebook[base[-1]]
    assert item["base_codes"] == base

    # base codes -> codes -> SID: alone on its codes it keeps them; three bits a level, 16 below
    rivals = [
        other
        for path in (generation / "items").glob("*.parquet")
        for other in pq.read_table(path).to_pylist()
        if other["base_codes"] == base
    ]
    assert (item["codes"] == base) == (item["placement"] == "nearest")
    assert item["codes"] == base or len(rivals) > 1
    first, second, third = item["codes"]
    assert item["sid"] == (((first << 3 | second) << 3 | third) << 16) + item["suffix"]
    assert item["content_hash"] == digest

    # codes -> n-gram columns, each position in a range of its own
    assert item["unigram"] == [first, 8 + second, 16 + third]
    assert item["bigram"] == [8 * first + second, 64 + 8 * second + third]
    assert item["prefix_ngram"] == [
        first,
        8 * (first + 1) + second + 1 - 1,
        64 * (first + 1) + 8 * (second + 1) + third + 1 - 1,
    ]
    vocabulary = find("ngrams", feature="bigram", id=item["bigram"][0])
    assert vocabulary["codes"] == [first, second]

    # SID -> nodes: what the prefixes stand for
    labels = [
        find("nodes", depth=depth, codes=item["codes"][:depth])["label"] for depth in (1, 2, 3)
    ]
    leaf = find("nodes", depth=3, codes=item["codes"])
    assert leaf["prefix"] == item["sid"] >> 16
    assert (leaf["item_count"], leaf["exemplar_item_id"]) == (1, row["item_id"])
    assert leaf["label"] == row["category_path"][-1]
    assert item["path_labels"] == labels

    # SID -> trie leaf, which is the row of `items`
    trie = safetensors.numpy.load_file(generation / "trie/trie.safetensors")
    node, start = int(np.searchsorted(trie["tokens.1"], first)), 0
    assert trie["tokens.1"][node] == first
    for level, code in ((1, second), (2, third)):
        start, stop = trie[f"child_start.{level}"][node : node + 2].astype(int)
        node = start + int(np.searchsorted(trie[f"tokens.{level + 1}"][start:stop], code))
        assert trie[f"tokens.{level + 1}"][node] == code
    order = [
        name
        for path in sorted((generation / "items").glob("*.parquet"))
        for name in pq.read_table(path)["item_id"].to_pylist()
    ]
    assert order[node] == row["item_id"]

    steps = {
        "catalog row": json.dumps(row, ensure_ascii=False),
        "text": text,
        "content hash": digest.hex(),
        "embedding": f"[{embedding[0]:.3f}, {embedding[1]:.3f}, ... 384 values]",
        "base codes": "-".join(map(str, base)),
        "codes and SID": f"{first}-{second}-{third} ({item['placement']}), {item['sid']}",
        "n-grams": f"unigram {item['unigram']}, bigram {item['bigram']}, "
        f"prefix_ngram {item['prefix_ngram']}",
        "labels": " > ".join(map(str, labels)),
        "trie leaf": f"leaf {node} = row {node} of items",
    }
    sys.stdout.write("\n".join(["", *(f"| {name} | {value} |" for name, value in steps.items())]))
