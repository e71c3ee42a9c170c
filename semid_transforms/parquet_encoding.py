"""How the columns of published tables are encoded."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_NAMES = frozenset({"item_id", "exemplar_item_id", "title"})
"""Columns of strings that hardly repeat."""


def encoding(schema: pa.Schema) -> dict[str, Any]:
    """Returns how the columns of a schema are encoded, as options of `ParquetWriter`.

    Vectors and hashes do not get smaller, so they are stored as they are. Names of items and 64-bit
    numbers, which are SIDs and n-grams, are all but all different: a dictionary of them takes a
    third more time and space than zstd alone.
    """
    leaves: list[str] = []
    plain: list[str] = []
    vectors: list[str] = []
    repeating: list[str] = []
    for field in schema:
        is_list = pa.types.is_list(field.type)
        path = f"{field.name}.list.element" if is_list else field.name
        if is_list and pa.types.is_floating(field.type.value_type):
            vectors.append(path)
        elif pa.types.is_fixed_size_binary(field.type):
            plain.append(path)
        else:
            leaves.append(path)
            value = field.type.value_type if is_list else field.type
            if field.name not in _NAMES and value not in (pa.int64(), pa.uint64()):
                repeating.append(path)
    return {
        "compression": {**dict.fromkeys(leaves, "zstd"), **dict.fromkeys(plain + vectors, "none")},
        "use_dictionary": repeating,
        "write_statistics": leaves + plain,
    }
