"""Catalogs as the world sends them, through the command line: what is refused, and how."""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.root import Root
from pipelines.settings import parse_settings
from semid_transforms.encoder_identity import identify_encoder
from tests.pipelines import jobs


@pytest.fixture
def semid(tmp_path, capsys, text_config):
    """Runs `semid tokenize` on files of a folder; returns (exit code, stdout, stderr)."""

    def run(pattern="catalog.*", config=None, *more):
        pattern = str(tmp_path / pattern)
        arguments = ["tokenize", "--catalog", pattern, "--root", str(tmp_path / "root"), *more]
        whole = jobs.merged(jobs.SETTINGS, text_config, config or {})
        code = jobs.command(tmp_path, *arguments, config=whole)
        return code, *capsys.readouterr()

    return run


def lines(path, rows):
    """Writes rows as JSON Lines; bytes are written as they are."""
    data = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(data) + b"\n")


def good(count, prefix="ok"):
    return [{"item_id": f"{prefix}-{n}", "title": f"Moka Pot {n}"} for n in range(count)]


def test_every_reason_of_text_rows_is_counted_and_kept(tmp_path, semid):
    bad = {
        "unparsable": b'{"item_id": "broken", "title": ',
        "invalid_utf8": b'{"item_id": "latin", "title": "caf\xe9"}',
        "bad_field": {"item_id": "mixed", "title": {"en": "a map"}},
        "missing_id": {"item_id": "  ", "title": "nobody's"},
        "no_text": {"item_id": "silent", "title": "<br/>&nbsp;", "popularity": 3},
        "duplicate_id": {"item_id": "ok-1", "title": "another Moka Pot"},
    }
    lines(tmp_path / "catalog.a.jsonl", [*good(40), *bad.values()])
    lines(tmp_path / "catalog.b.jsonl", [*good(10, "more"), good(1)[0], {"title": "no id"}])
    config = {"input": {"max_reject_share": 0.2}}
    code, out, _ = semid("catalog.*.jsonl", config)
    assert code == 0
    for reason in bad:
        assert reason in out
    root = tmp_path / "root"
    rejects = jobs.table(root, "rejects").to_pylist()
    reasons = sorted(row["reason"] for row in rejects)
    assert reasons == sorted([*bad, "missing_id"])
    manifest = Root(str(root)).require_published()[1]
    assert manifest.rejects == dict.fromkeys(bad, 1) | {"missing_id": 2}
    counts = {name.rsplit("/", 1)[1]: c for name, c in manifest.sources.items()}
    first, second = counts["catalog.a.jsonl"], counts["catalog.b.jsonl"]
    assert (first.read, first.live + first.duplicate, first.rejected) == (46, 40, 6)
    assert (second.read, second.live + second.duplicate, second.rejected) == (12, 11, 1)
    assert first.duplicate + second.duplicate == 1
    assert all(count.balanced for count in counts.values())
    kept = {row["reason"]: row for row in rejects}
    assert kept["invalid_utf8"]["payload"] == bad["invalid_utf8"]
    assert json.loads(kept["no_text"]["payload"])["popularity"] == 3
    assert kept["no_text"]["item_id"] == "silent"
    jobs.assert_sound(root)


def test_every_fault_of_an_embedding_is_rejected(tmp_path, semid):
    rows = jobs.vector_rows({f"v{n}": n for n in range(40)})
    faults = {
        "nan": [float("nan"), *rows[0]["embedding"][1:]],
        "inf": [float("inf"), *rows[0]["embedding"][1:]],
        "zero": [0.0] * jobs.DIMENSIONS,
        "short": rows[0]["embedding"][:-1],
        "null": None,
    }
    rows += [{"item_id": name, "title": name, "embedding": v} for name, v in faults.items()]
    jobs.write_rows(tmp_path / "catalog.parquet", rows)
    code, out, _ = semid("catalog.parquet", {"input": {"max_reject_share": 0.5}})
    assert code == 0
    assert "bad_embedding" in out
    rejects = jobs.table(tmp_path / "root", "rejects").to_pylist()
    assert {(row["item_id"], row["reason"]) for row in rejects} == {
        (name, "bad_embedding") for name in faults
    }
    assert set(jobs.sids(tmp_path / "root")) == {f"v{n}" for n in range(40)}


def test_an_empty_night_after_one_with_embeddings_is_refused_as_empty(tmp_path, semid):
    """No row says what its embeddings would be, so nothing can be said to mismatch."""
    rows = jobs.vector_rows({f"v{n}": n for n in range(40)})
    jobs.write_rows(tmp_path / "catalog.parquet", rows)
    assert semid("catalog.parquet")[0] == 0
    before = jobs.current(tmp_path / "root")
    (tmp_path / "none.jsonl").write_text("")
    code, _, err = semid("none.jsonl")
    assert (code, "0 rows read from 1 file" in err) == (3, True)
    assert jobs.current(tmp_path / "root") == before


def test_too_many_rejects_publish_nothing(tmp_path, semid):
    lines(tmp_path / "catalog.jsonl", [*good(93), *[{"item_id": f"x{n}"} for n in range(7)]])
    code, out, err = semid()
    assert (code, out) == (3, "")
    assert "7 of 100 rows rejected (7.0%)" in err
    assert "input.max_reject_share (5.0%)" in err
    assert "7  no_text" in err
    assert jobs.current(tmp_path / "root") is None
    assert "rejects" in err and list((tmp_path / "root").glob("generations/*/rejects/*.parquet"))

    assert semid(config={"input": {"max_reject_share": 0.07}})[0] == 0
    before = jobs.current(tmp_path / "root")
    lines(tmp_path / "catalog.jsonl", [*good(93), *[{"item_id": f"x{n}"} for n in range(8)]])
    assert semid(config={"input": {"max_reject_share": 0.07}})[0] == 3
    assert jobs.current(tmp_path / "root") == before
    jobs.assert_sound(tmp_path / "root")


def test_a_truncated_gzip_publishes_nothing_unless_allowed(tmp_path, semid):
    whole = gzip.compress("".join(json.dumps(r) + "\n" for r in jobs.products(800)).encode())
    (tmp_path / "catalog.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    code, _, err = semid()
    assert code == 3
    assert "damaged_file" in err and "input.allow_damaged_files" in err
    assert jobs.current(tmp_path / "root") is None
    code, out, _ = semid(config={"input": {"allow_damaged_files": True}})
    assert code == 0
    assert "damaged_file" in out
    jobs.assert_sound(tmp_path / "root")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("catalog.jsonl", b"", "no usable item: 0 rows"),
        ("catalog.csv", b"item_id,title\n", "no usable item: 0 rows"),
        ("catalog.parquet", b"", "damaged"),
        ("catalog.parquet", b"PAR1 this is no Parquet file PAR1", "damaged"),
        ("catalog.jsonl", b'{"item_id": "a"}\n', "1 of 1 rows rejected"),
        ("other.jsonl", b"{}", "no file matches"),
    ],
)
def test_a_catalog_without_a_usable_row_is_refused(tmp_path, semid, name, data, message):
    (tmp_path / name).write_bytes(data)
    code, _, err = semid()
    assert code == 3
    assert message in err
    assert jobs.current(tmp_path / "root") is None


def test_a_catalog_whose_every_row_is_rejected_is_refused_at_any_threshold(tmp_path, semid):
    lines(tmp_path / "catalog.jsonl", [{"item_id": "a"}, {"title": "b"}])
    code, _, err = semid(config={"input": {"max_reject_share": 1.0}})
    assert code == 3
    assert "no usable item: 2 rows read from 1 file" in err
    assert "no_text" in err and "missing_id" in err


STRANGE = {
    "nul\x00byte": "Moka \x00 Pot",
    "emoji 🫖": "Teapot 🫖👩‍👩‍👧",
    "מזהה": "מחמם מים \u202eחשמלי\u202c",
    "../../etc/passwd": "Slashes",
    "gs://bucket/item": "More slashes",
    "two\nlines\r\n": "A title\nof two lines",
    " padded ": "Padded id",
    "'; DROP TABLE items; --": "Quotes ' and \" and ;",
    "a" * 5000: "Long id",
    "null": "The word null",
    "0": "Zero",
}


def test_strange_ids_and_texts_go_through_unchanged(tmp_path, semid, capsys):
    rows = [{"item_id": name, "title": title} for name, title in STRANGE.items()]
    rows.append({"item_id": "big", "title": "Big", "description": "word " * (2 << 20)})
    lines(tmp_path / "catalog.jsonl", [*rows, *good(30)])
    code, _, _ = semid()
    assert code == 0
    root = tmp_path / "root"
    found = jobs.sids(root)
    assert set(found) == {*STRANGE, "big", *(f"ok-{n}" for n in range(30))}
    assert len(set(found.values())) == len(found)
    catalog = {row["item_id"]: row["title"] for row in jobs.table(root, "catalog").to_pylist()}
    assert catalog["two\nlines\r\n"] == "A title of two lines"
    assert catalog["emoji 🫖"] == "Teapot 🫖👩‍👩‍👧"
    jobs.assert_sound(root)
    for name in ("two\nlines\r\n", "nul\x00byte", "../../etc/passwd"):
        assert jobs.command(tmp_path, "show", "--root", str(root), "--item", name, "--json") == 0
        assert json.loads(capsys.readouterr().out)["item_id"] == name


def test_the_newest_duplicate_wins_then_the_smallest_content_hash(tmp_path, semid):
    def row(title, day):
        return {"item_id": "same", "title": title, "updated_at": day}

    duplicates = [
        row("old", "2026-01-01T00:00:00Z"),
        row("new", "2026-02-01T00:00:00Z"),
        row("undated", None),
    ]
    config = {"input": {"max_reject_share": 0.5}}
    for order in (duplicates, duplicates[::-1]):
        lines(tmp_path / "catalog.jsonl", [*order, *good(30), *good(3)])
        assert semid(config=config)[0] == 0
        catalog = jobs.table(tmp_path / "root", "catalog").to_pylist()
        assert [r["title"] for r in catalog if r["item_id"] == "same"] == ["new"]
        total = Root(str(tmp_path / "root")).require_published()[1].total
        assert (total.read, total.live, total.rejected, total.duplicate) == (36, 31, 2, 3)

    titles = ["one", "two", "three"]
    kept = []
    for order in (titles, titles[::-1]):
        lines(tmp_path / "catalog.jsonl", [*[row(t, None) for t in order], *good(30)])
        assert semid(config=config)[0] == 0
        rows = jobs.table(tmp_path / "root", "catalog").to_pylist()
        same = next(r for r in rows if r["item_id"] == "same")
        kept.append((same["title"], same["content_hash"]))
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("inputs: {}\n", "inputs: unknown key"),
        ("input: {colums: {}}\n", "input.colums: unknown key"),
        ("quantizer: {kind: rqkmean}\n", "quantizer.kind"),
        ("quantizer: {kind: rqkmeans, depth: 3}\n", "quantizer.depth: unknown key"),
        ("shards: {batch_rows: many}\n", "shards.batch_rows"),
        ("input: {max_reject_share: 2}\n", "input.max_reject_share"),
        ("text: {parts: ['{popularity}']}\n", "text"),
        ("quantizer: {kind: rqkmeans, codebook_sizes: [8192, 8192, 8192, 8192, 8192]}\n", "bits"),
        ("ngrams: [{name: fourgrams}]\n", "ngrams.0"),
        ("ngrams: [{name: unigram}, {name: unigram}]\n", "unigram is listed twice"),
        ("encoder: {model: /nowhere/model}\n", "/nowhere/model"),
        ("input: {columns: {title: name}}\n", "name"),
        ("a: [1,\n", "semid.yaml"),
        ("- a list\n", "mapping"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path, capsys, config, message):
    jobs.write_rows(tmp_path / "catalog.parquet", good(3))
    arguments = ["--catalog", str(tmp_path / "catalog.parquet"), "--root", str(tmp_path / "root")]
    assert jobs.command(tmp_path, "tokenize", *arguments, config=config) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "root").glob("*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokenize", "--root", "r"],
        ["tokenize", "--catalog", "c", "--root", "r", "--as-of", "yesterday"],
        ["show"],
        ["verify", "--root", "r", "--unknown"],
        ["tokenise"],
        [],
    ],
)
def test_bad_usage_is_2(tmp_path, capsys, arguments):
    assert jobs.command(tmp_path, *arguments) == 2
    assert "usage: semid" in capsys.readouterr().err


def test_a_missing_config_file_or_root_is_2(tmp_path, capsys):
    missing = str(tmp_path / "no.yaml")
    arguments = ["--catalog", "x", "--root", str(tmp_path / "root"), "--config", missing]
    assert jobs.command(tmp_path, "tokenize", *arguments) == 2
    assert "no.yaml" in capsys.readouterr().err
    for command in ("show", "verify", "metrics"):
        assert jobs.command(tmp_path, command, "--root", str(tmp_path / "nothing")) == 2
        assert "nothing is published" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("in the way")
    arguments = ["--catalog", str(file), "--root", str(file / "root")]
    assert jobs.command(tmp_path, "tokenize", *arguments) == 2
    assert "--root" in capsys.readouterr().err


def test_gates_refuse_to_publish(tmp_path, semid):
    lines(tmp_path / "catalog.jsonl", jobs.products(120))
    gates = {"min_perplexity": 1.0, "max_collision_share": 0.0, "max_suffixed_share": 0.0}
    code, out, err = semid(config={"gates": gates})
    assert (code, out) == (4, "")
    assert "gates.min_perplexity (1.0)" in err and "gates.max_collision_share" in err
    assert "metrics.json" in err
    assert jobs.current(tmp_path / "root") is None
    assert semid(config={"gates": gates})[0] == 4  # resumed, and still refused
    assert semid()[0] == 0


def test_a_better_tokenizer_may_follow_a_refused_one(tmp_path, semid):
    """Training and sample are not part of what makes IDs comparable, but they refit."""
    lines(tmp_path / "catalog.jsonl", jobs.products(120))
    gates = {"gates": {"min_perplexity": 1.0}}
    short = {"steps": 2, "warmup_steps": 1, "decoder_steps": 0, "batch_size": 32}
    rqvae = {"kind": "rqvae", "codebook_sizes": [8, 8], "latent_dim": 4, "hidden": [8]}
    assert semid(config={"quantizer": {**rqvae, "training": short}, **gates})[0] == 4
    code, out, _ = semid(config={"quantizer": {**rqvae, "training": {**short, "steps": 3}}})
    assert code == 0
    assert "fitted on" in out
    assert len(list((tmp_path / "root/tokenizers").iterdir())) == 2


OTHERWISE = {
    "encoder length": ({"encoder": {"max_length": 16}}, "encoder {} here, {} published"),
    "template": ({"text": {"parts": ["{title}"]}}, "text template {} here, {} published"),
    "tokenizer": (
        {"quantizer": {"kind": "rqkmeans", "iterations": 6}},
        "quantizer.iterations 6 here, 5 published",
    ),
    "layout": (
        {"quantizer": {"kind": "rqkmeans", "codebook_sizes": [16, 16, 8]}},
        "quantizer.codebook_sizes",
    ),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_ids_made_otherwise_are_refused(tmp_path, capsys, copied, text_root, text_config, what):
    config, message = OTHERWISE[what]
    root = copied(text_root)
    before = jobs.current(root)
    catalog = str(root.parent / "catalog.jsonl")
    whole = jobs.merged(jobs.SETTINGS, text_config, config)
    published = Root(str(root)).require_published()[1].fingerprints
    if "{}" in message:
        settings = parse_settings(whole)
        ours = {
            "template": settings.template_fingerprint,
            "encoder length": identify_encoder(settings.job.encoder).fingerprint,
        }[what]
        theirs = published.template if what == "template" else published.encoder
        message = message.format(ours[:16], theirs[:16])
    arguments = ["--catalog", catalog, "--root", str(root)]
    assert jobs.command(tmp_path, "tokenize", *arguments, config=whole) == 5
    assert message in capsys.readouterr().err
    assert jobs.current(root) == before


def test_a_default_that_is_not_set_does_not_refuse(tmp_path, capsys, copied, vector_root):
    """The published tokenizer and its layout are frozen, whatever the defaults are."""
    root = copied(vector_root)
    arguments = ["--catalog", str(root.parent / "catalog.parquet"), "--root", str(root)]
    whole = {"quantizer": {"kind": "rqkmeans"}, "gates": {"min_perplexity": 0}}
    assert jobs.command(tmp_path, "tokenize", *arguments, config=whole) == 0
    assert jobs.sids(root) == jobs.sids(vector_root)
    manifest = Root(str(root)).require_published()[1]
    assert manifest.fingerprints.layout["codebook_sizes"] == [16, 16, 16]
    jobs.assert_sound(root)


def test_other_weights_and_other_embeddings_are_refused(
    tmp_path, capsys, copied, text_root, text_config, other_model
):
    root = copied(text_root)
    arguments = ["tokenize", "--root", str(root), "--catalog"]
    catalog = str(root.parent / "catalog.jsonl")
    config = jobs.merged(jobs.SETTINGS, text_config, {"encoder": {"model": other_model}})
    assert jobs.command(tmp_path, *arguments, catalog, config=config) == 5
    assert "encoder" in capsys.readouterr().err
    vectors = jobs.write_rows(tmp_path / "v.parquet", jobs.vector_rows({"a": 1, "b": 2}))
    config = jobs.merged(jobs.SETTINGS, text_config)
    assert jobs.command(tmp_path, *arguments, vectors, config=config) == 5
    assert "encoder" in capsys.readouterr().err


def test_shared_ids_cannot_become_unique_ones(tmp_path, capsys):
    """Under policy `none` items share IDs; no later run may call them unique."""
    rows = jobs.vector_rows({f"i{n}": n % 5 for n in range(20)})
    catalog = jobs.write_rows(tmp_path / "catalog.parquet", rows)
    jobs.run(catalog, tmp_path / "root", {"collisions": {"policy": "none"}})
    jobs.assert_sound(tmp_path / "root")
    before = jobs.current(tmp_path / "root")
    arguments = ["tokenize", "--catalog", catalog, "--root", str(tmp_path / "root")]
    assert jobs.command(tmp_path, *arguments, config=jobs.SETTINGS) == 5
    assert "collisions.policy" in capsys.readouterr().err
    assert jobs.current(tmp_path / "root") == before


def test_an_item_whose_suffix_does_not_fit_is_named(tmp_path, capsys):
    rows = jobs.vector_rows({f"copy-{n}": "same" for n in range(20)} | {"else": "other"})
    catalog = jobs.write_rows(tmp_path / "catalog.parquet", rows)
    config = {
        "quantizer": {
            "kind": "rqkmeans",
            "iterations": 1,
            "codebook_sizes": [8192] * 4 + [512, 2, 2],
        },
        "gates": {"min_perplexity": 0},
        "ngrams": [{"name": "unigram"}],
    }
    arguments = ["tokenize", "--catalog", catalog, "--root", str(tmp_path / "root")]
    assert jobs.command(tmp_path, *arguments, config=config) == 1
    assert "item 'copy-" in capsys.readouterr().err


def test_an_unreadable_worker_error_keeps_the_published_generation(
    tmp_path, capsys, copied, vector_root
):
    root = copied(vector_root)
    before = jobs.current(root)
    part = next(root.glob("generations/*/items/*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    arguments = ["tokenize", "--catalog", str(root.parent / "catalog.parquet"), "--root", str(root)]
    assert jobs.command(tmp_path, *arguments, config=jobs.SETTINGS) == 1
    message = capsys.readouterr().err
    assert "is not a readable Parquet file" in message
    assert "nothing that was published changed" in message
    assert jobs.current(root) == before


def test_a_fixed_size_list_of_embeddings_is_the_same_catalog(tmp_path, vector_catalog, vector_root):
    plain = pa.Table.from_pylist(vector_catalog)
    fixed = plain.set_column(
        plain.schema.get_field_index("embedding"),
        "embedding",
        plain["embedding"].cast(pa.list_(pa.float32(), jobs.DIMENSIONS)),
    )
    pq.write_table(fixed, tmp_path / "catalog.parquet")
    jobs.run(str(tmp_path / "catalog.parquet"), tmp_path / "root")
    assert jobs.sids(tmp_path / "root") == jobs.sids(vector_root)


def test_progress_goes_to_stderr_unless_quiet(tmp_path, semid, caplog):
    lines(tmp_path / "catalog.jsonl", good(20))
    with caplog.at_level(logging.INFO):
        assert semid()[0] == 0
    assert any("place" in record.getMessage() for record in caplog.records)
    caplog.clear()
    assert semid("catalog.*", None, "--quiet")[0] == 0
    assert not caplog.records
