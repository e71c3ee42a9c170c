import dataclasses
import hashlib
import json

import pytest

from schemas.manifest import Current, FileEntry, Fingerprints, Manifest, SchemaVersionError
from schemas.rejects import SourceCounts

FILES = [
    FileEntry("items/part-00000.parquet", 10, 100, "aa"),
    FileEntry("items/part-00001.parquet", 5, 60, "bb"),
    FileEntry("items.parquet", 1, 1, "cc"),
    FileEntry("items/readme.txt", None, 1, "dd"),
    FileEntry("trie/trie.safetensors", None, 40, "ee"),
]


def manifest() -> Manifest:
    text = {field.name: field.name for field in dataclasses.fields(Fingerprints)}
    return Manifest(
        generation="000002-b",
        parent="000001-a",
        created="2024-01-02T03:04:05+00:00",
        counts={"items": 15, "new": 5},
        sources={
            "gs://b/é.jsonl": SourceCounts(20, 14, 5, 1),
            "b.csv": SourceCounts(1, 1, 0, 0),
        },
        rejects={"no_text": 5},
        fingerprints=Fingerprints(**(text | {"layout": {"sizes": [256, 256]}})),
        encoder={"name": "embedded", "max_length": 256},
        config={"input": {"max_reject_share": 0.05}, "text": None},
        shards=[0, 77],
        files=FILES,
        parent_manifest_sha256="ff",
    )


def test_a_manifest_survives_its_file():
    assert Manifest.from_json(manifest().to_json()) == manifest()
    first = dataclasses.replace(manifest(), parent=None)
    assert Manifest.from_json(first.to_json()) == first
    assert manifest().to_json() == manifest().to_json()
    assert manifest().to_json().endswith(b"}\n")


def test_totals_and_parts():
    assert manifest().total == SourceCounts(21, 15, 5, 1)
    assert manifest().total.balanced
    assert dataclasses.replace(manifest(), sources={}).total == SourceCounts(0, 0, 0, 0)
    assert manifest().table("items") == FILES[:2]
    assert manifest().table("nodes") == []


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'"x"', b"[" * 100_000]
)
def test_what_is_no_manifest_is_called_damaged(data):
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation", None),
        ("counts", {"items": "15"}),
        ("sources", []),
        ("sources", {"a": {"read": 1}}),
        ("fingerprints", {"encoder": "x"}),
        ("files", [{"path": "items"}]),
        ("files", {}),
        ("shards", ["0"]),
    ],
)
def test_a_value_of_another_type_is_named(key, value):
    damaged = json.loads(manifest().to_json()) | {key: value}
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: {key}"):
        Manifest.from_json(json.dumps(damaged).encode())
    del damaged[key]
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: {key}"):
        Manifest.from_json(json.dumps(damaged).encode())


@pytest.mark.parametrize("key", ["schema", "layout"])
@pytest.mark.parametrize(("version", "fix"), [(9, "a later one"), (0, "a new --root")])
def test_another_version_is_named_with_the_way_out(key, version, fix):
    other = json.loads(manifest().to_json()) | {f"{key}_version": version}
    message = f"has {key} version {version}, this semid reads [12]: .*{fix}"
    with pytest.raises(SchemaVersionError, match=message):
        Manifest.from_json(json.dumps(other).encode())


def test_the_pointer_names_a_manifest_by_its_bytes():
    data = manifest().to_json()
    current = Current.of("000002-b", data)
    assert current.manifest_sha256 == hashlib.sha256(data).hexdigest()
    assert Current.from_json(current.to_json()) == current


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"generation": 1, "manifest_sha256": "x"}', b"\xff", b"[" * 10**5]
)
def test_what_is_no_pointer_is_called_damaged(data):
    with pytest.raises(ValueError, match="CURRENT is damaged"):
        Current.from_json(data)
