"""The packed SID's layout; packing itself is attacked through resolution and the trie."""

import json

import pytest

from models.sid import SidLayout


def test_a_layout_survives_json_and_says_whether_prefixes_mean_something():
    for layout in (SidLayout.fitting((256, 300)), SidLayout.fitting((256, 300), False)):
        assert SidLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    assert SidLayout.fitting((8, 8), False) != SidLayout.fitting((8, 8))
    assert SidLayout.from_json({"codebook_sizes": [8, 8], "suffix_bits": 16}).hierarchical
    with pytest.raises(ValueError, match="not a SID layout"):
        SidLayout.from_json({"codebook_sizes": [8], "suffix_bits": 1, "hierarchical": "no"})


def test_codes_of_parallel_codebooks_have_no_prefixes():
    levels, flat = SidLayout.fitting((8, 8)), SidLayout.fitting((8, 8), False)
    assert flat.prefix_range((3, 5)) == levels.prefix_range((3, 5))
    assert flat.prefix_range(()) == levels.prefix_range(())
    with pytest.raises(ValueError, match=r"prefix 3: .* no prefixes; give all 2 codes"):
        flat.prefix_range((3,))
