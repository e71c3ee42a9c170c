"""Looking at what is published: items, IDs, prefixes, metrics, the quickstart."""

import json
import re
from collections import Counter

import pytest

import pipelines.quickstart
from models.metrics import DEFINITIONS
from pipelines.sample_catalog import generate_products
from pipelines.settings import parse_settings
from tests.pipelines import jobs


@pytest.fixture
def show(tmp_path, capsys, text_root):
    """Runs a command on the text root; returns (exit code, parsed JSON or None, stderr)."""

    def run(*arguments, command="show"):
        whole = [command, "--root", str(text_root), *arguments, "--json"]
        code = jobs.command(tmp_path, *whole)
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


@pytest.fixture(scope="module")
def items(text_root):
    return jobs.table(text_root, "items").to_pylist()


def dashed(codes):
    return "-".join(map(str, codes))


def test_an_item_is_shown_with_its_neighbours(show, items, text_root):
    item = items[17]
    code, shown, _ = show("--item", item["item_id"])
    assert code == 0
    assert (shown["sid"], shown["sid_text"]) == (item["sid"], dashed(item["codes"]))
    assert shown["features"]["bigram"] == item["bigram"]
    assert shown["base_codes"] == dashed(item["base_codes"])
    catalog = {row["item_id"]: row for row in jobs.table(text_root, "catalog").to_pylist()}
    assert shown["title"] == catalog[item["item_id"]]["title"]
    assert shown["category_path"] == catalog[item["item_id"]]["category_path"]
    assert len(shown["path_labels"]) == 3
    near = shown["neighbours"]
    assert len(near) == 10
    assert [row["shared"] for row in near] == sorted((r["shared"] for r in near), reverse=True)
    codes = {row["item_id"]: row["codes"] for row in items}
    for row in near:
        other = codes[row["item_id"]]
        assert other[: row["shared"]] == item["codes"][: row["shared"]]
        assert other != item["codes"]
        assert row["sid_text"] == dashed(other)


def test_a_sid_is_found_packed_and_dashed(show, items):
    item = items[42]
    for text in (str(item["sid"]), dashed(item["codes"])):
        code, shown, _ = show("--sid", text)
        assert (code, shown["item_id"]) == (0, item["item_id"])


def test_a_prefix_is_shown_with_its_children(show, items):
    first = items[100]["codes"][0]
    under = [item for item in items if item["codes"][0] == first]
    code, shown, _ = show("--prefix", str(first), "--limit", "300")
    assert code == 0
    assert (shown["items"], shown["sample"]) == (len(under), [])
    assert {child["prefix"]: child["items"] for child in shown["children"]} == Counter(
        dashed(item["codes"][:2]) for item in under
    )
    below = [leaf for child in shown["children"] for leaf in child["children"]]
    assert {leaf["prefix"] for leaf in below} == {dashed(item["codes"]) for item in under}
    assert {(leaf["items"], leaf["more"]["nodes"]) for leaf in below} == {(1, 0)}


def test_the_tree_is_bounded_and_counts_what_it_leaves_out(show, items):
    shown = show("--limit", "6")[1]
    assert shown["items"] == 300
    for parent, most in [(shown, 6), *((child, 2) for child in shown["children"])]:
        counts = [child["items"] for child in parent["children"]]
        assert counts == sorted(counts, reverse=True)
        assert 1 <= len(counts) <= most
        assert sum(counts) + parent["more"]["items"] == parent["items"]
        assert len(counts) == most or not parent["more"]["nodes"]
        depth = len(parent["prefix"].split("-")) if parent["prefix"] else 0
        below = {
            dashed(item["codes"][: depth + 1])
            for item in items
            if not depth or dashed(item["codes"][:depth]) == parent["prefix"]
        }
        assert len(counts) + parent["more"]["nodes"] == len(below)
    assert not any(leaf["children"] for child in shown["children"] for leaf in child["children"])
    fullest = Counter(item["codes"][0] for item in items).most_common(1)[0][1]
    assert shown["children"][0]["items"] == fullest


def test_a_whole_id_is_a_prefix_of_one_item(show, items):
    leaf = show("--prefix", dashed(items[0]["codes"]))[1]
    assert (leaf["items"], leaf["children"]) == (1, [])
    assert [row["item_id"] for row in leaf["sample"]] == [items[0]["item_id"]]


def test_the_tree_counts_what_a_backfill_added(tmp_path, copied, vector_root, capsys):
    root = copied(vector_root)
    rows = jobs.vector_rows({"item-900": "new", "item-901": "newer"})
    jobs.add(jobs.write_rows(tmp_path / "more.parquet", rows), root)
    assert jobs.command(tmp_path, "show", "--root", str(root), "--limit", "16", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    codes = jobs.table(root, "items")["codes"].to_pylist()
    assert shown["items"] == 302
    assert {child["prefix"]: child["items"] for child in shown["children"]} == Counter(
        str(code[0]) for code in codes
    )


def test_the_tree_is_drawn_with_labels(tmp_path, capsys, text_root):
    assert jobs.command(tmp_path, "show", "--root", str(text_root), "--limit", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "all prefixes  (300 items)"
    nodes = jobs.table(text_root, "nodes").to_pylist()
    labels = {dashed(node["codes"]): node["label"] for node in nodes}
    drawn = 0
    for line in lines[1:]:
        found = re.fullmatch(r"(?:│  |   )?[├└]─ ([0-9-]+)  (.*)  \(.*\)", line)
        if found:
            assert labels[found[1]] == found[2]
            drawn += 1
        else:
            assert re.fullmatch(r"(?:│  |   )?└─ [0-9,]+ more, [0-9,]+ items?", line)
    assert drawn == 4 + 4  # one child under each of four nodes


UNKNOWN = [
    (("--item", "nobody"), "item 'nobody' is not in generation"),
    (("--sid", "9-9"), "has 2 codes, a SID has 3"),
    (("--sid", "1-2-16"), "code 16 at level 3 is outside 0..15"),
    (("--sid", "1-2-x"), "not a code tuple"),
    (("--sid", "1-2-3~70000"), "suffix 70000 does not fit"),
    (("--sid", "123456789"), "has SID 123456789"),
    (("--sid", "9" * 30), "is above 268435455"),
    (("--sid", ""), "has 0 codes"),
    (("--prefix", "17"), "code 17 at level 1 is outside 0..15"),
    (("--prefix", "1-2-3-4"), "has 4 codes, the layout has 3 levels"),
    (("--prefix", "1~2"), "a prefix has no suffix"),
    (("--limit", "0"), "--limit must be at least 1"),
]


@pytest.mark.parametrize(("arguments", "message"), UNKNOWN)
def test_what_is_not_there_is_named(show, arguments, message):
    code, shown, err = show(*arguments)
    assert (code, shown) == (2, None)
    assert message in err


def test_a_free_sid_of_the_layout_is_not_an_item(show, items):
    taken = {tuple(item["codes"]) for item in items}
    free = next(
        (a, b, c) for a in range(16) for b in range(16) for c in range(16) if (a, b, c) not in taken
    )
    code, _, err = show("--sid", dashed(free))
    assert code == 2
    assert "no item of generation" in err and dashed(free) in err


def test_a_retired_item_is_known(tmp_path, capsys, copied, vector_root, vector_catalog):
    root = copied(vector_root)
    sid = jobs.sids(root)["item-007"]
    rows = [row for row in vector_catalog if row["item_id"] != "item-007"]
    jobs.run(jobs.write_rows(tmp_path / "c.parquet", rows), root)
    assert jobs.command(tmp_path, "show", "--root", str(root), "--item", "item-007") == 2
    assert "was retired in generation 000002-" in capsys.readouterr().err
    assert jobs.command(tmp_path, "show", "--root", str(root), "--sid", str(sid)) == 2
    assert "item-007" in capsys.readouterr().err


def test_items_are_found_in_every_shard(tmp_path, capsys):
    rows = jobs.vector_rows({f"i{n}": n for n in range(120)})
    catalog = jobs.write_rows(tmp_path / "c.parquet", rows)
    outcome = jobs.run(catalog, tmp_path / "root", {"shards": {"rows_per_shard": 16}})
    assert len(outcome.manifest.shards) > 4
    found = jobs.sids(tmp_path / "root")
    for name in ("i0", "i50", "i119"):
        arguments = ["show", "--root", str(tmp_path / "root"), "--json"]
        assert jobs.command(tmp_path, *arguments, "--sid", str(found[name])) == 0
        assert json.loads(capsys.readouterr().out)["item_id"] == name


def test_metrics_come_with_their_definitions(show, text_root):
    code, shown, _ = show(command="metrics")
    assert code == 0
    generation = text_root / "generations" / shown.pop("generation")
    assert shown.pop("compared") == {}
    assert shown.pop("tokenizer")["tag_accuracy"] == [], "rqkmeans is not supervised"
    assert shown == json.loads((generation / "metrics.json").read_text())
    assert shown["definitions"] == DEFINITIONS
    assert shown["items"] == 300
    assert shown["after"]["shared_sids"] == {"a": 0.0, "b": 0.0, "largest": 1}
    assert sum(shown["placements"].values()) == 300
    assert [level["codebook_size"] for level in shown["before"]["levels"]] == [16, 16, 16]


def test_metrics_as_text_name_every_figure(tmp_path, capsys, text_root):
    assert jobs.command(tmp_path, "metrics", "--root", str(text_root)) == 0
    out = capsys.readouterr().out
    for word in ("perplexity/K", "collisions", "placement", "1 - R2", "neighbours", *DEFINITIONS):
        assert word in out


def test_text_output_is_for_people(tmp_path, capsys, text_root, items):
    arguments = ["show", "--root", str(text_root)]
    assert jobs.command(tmp_path, *arguments, "--item", items[3]["item_id"]) == 0
    out = capsys.readouterr().out
    assert items[3]["item_id"] in out and dashed(items[3]["codes"]) in out
    assert jobs.command(tmp_path, *arguments) == 0
    assert "all prefixes" in capsys.readouterr().out


def test_the_quickstart_runs_from_nothing(tmp_path, capsys, monkeypatch):
    """Small, but whole: the embedded encoder, a short training of the default kind, the tour."""
    training = {"steps": 150, "warmup_steps": 50, "decoder_steps": 20, "batch_size": 64}
    config = {"quantizer": {"kind": "rqvae", "hidden": [32], "training": training}}
    monkeypatch.setattr(pipelines.quickstart, "parse_settings", lambda _: parse_settings(config))
    monkeypatch.setattr(pipelines.quickstart, "PRODUCTS", 48)
    monkeypatch.setattr(pipelines.quickstart, "_SHOWN", ("P000007", "P000042"))
    folder = tmp_path / "quick"
    assert jobs.command(tmp_path, "quickstart", "--folder", str(folder), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rows"] == {"read": 48, "live": 48, "rejected": 0, "duplicate": 0}
    links = shown["links"]
    assert links["embed"]["counters"]["embed/texts-encoded"] <= 48
    for link, stage in (
        ("read", "read/validate"),
        ("read", "diff/shard"),
        ("embed", "embed/encode"),
        ("embed", "embed/write"),
        ("assign", "assign/quantize"),
        ("place", "place/settle"),
        ("place", "place/resolve"),
        ("index", "index/labels"),
    ):
        counted = links[link]["counters"]
        assert counted[f"{stage}-rows"] == 48, stage
        assert counted[f"{stage}-bytes"] > 48 * 8, stage
        assert counted[f"{stage}-milliseconds-elements"] > 0, stage
        assert counted[f"{stage}-milliseconds-max"] <= counted[f"{stage}-milliseconds-sum"], stage
    assert all(link["cpu_seconds"] > 0 for name, link in links.items() if name != "publish")
    assert shown["peak_memory_bytes"] == max(link["peak_memory_bytes"] for link in links.values())
    assert shown["peak_memory_bytes"] > 100 << 20
    root = folder / "root"
    assert shown["root"] == str(root)
    jobs.assert_sound(root)
    embeddings = jobs.table(root, "embeddings")
    assert len(embeddings["embedding"][0]) == 384
    # The same folder again: the same catalog, so nothing changes.
    assert jobs.command(tmp_path, "quickstart", "--folder", str(folder)) == 0
    out = capsys.readouterr().out
    assert "nothing changed" in out
    assert "P000042" in out and "items sharing its prefix" in out and "all prefixes" in out


def test_the_generated_catalog_is_seeded_and_messy():
    rows = list(generate_products(400))
    assert rows == list(generate_products(400))
    assert rows[:50] != list(generate_products(50, seed=8))
    assert len({row["item_id"] for row in rows}) == 400
    texts = " ".join(f"{row['title']} {row['description']}" for row in rows)
    assert "<p>" in texts and "&amp;" in texts and "\u00a0" in texts
    assert any(row["brand"] is None for row in rows)
    assert any(row["description"] is None for row in rows)
    contents = [(row["title"], row["description"], row["brand"]) for row in rows]
    assert len(set(contents)) < 400
    assert {len(row["category_path"]) for row in rows} == {3}
