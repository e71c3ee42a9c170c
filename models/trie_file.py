"""The trie on disk: one safetensors file.

Tensors, levels counted from 1 as in the codes:
  `tokens.1` .. `tokens.T`: uint8/uint16/uint32, the code that leads to each node;
  `child_start.1` .. `child_start.T-1`: uint32/uint64, (nodes + 1,), the children of node p of
    level t are the nodes `child_start.t[p]` .. `child_start.t[p + 1] - 1` of level t + 1;
  `row_start`: uint32/uint64, (leaves + 1,), only where items share IDs: the rows of leaf i are
    `row_start[i]` .. `row_start[i + 1] - 1`. Without it leaf i is row i.
The root's children are all nodes of level 1; leaves are the nodes of level T. Metadata: `format`
"semid.trie", `version` "1", `layout` (JSON: codebook_sizes, suffix_bits, hierarchical), `depth` T,
`rows`. When T is one more than the number of codebook sizes, the last level is the suffix number.

With safetensors alone, all IDs that start with code 17:
  tensors = safetensors.numpy.load_file("trie.safetensors")
  node = numpy.searchsorted(tensors["tokens.1"], 17)
  second_codes = tensors["tokens.2"][slice(*tensors["child_start.1"][node : node + 2])]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from models.sid import SidLayout
from models.trie import Trie
from models.trie_join import plan_join

TRIE_FORMAT = "semid.trie"
TRIE_VERSION = "1"
# One dtype name per array type a trie uses, as safetensors spells them.
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 1 << 20


def write_trie(trie: Trie, file: BinaryIO) -> None:
    """Writes a trie to an open binary file, array by array, without a copy of the whole.

    Equal tries give equal bytes.
    """
    write_joined_trie([trie], trie.layout, file)


def write_joined_trie(tries: Sequence[Trie], layout: SidLayout, file: BinaryIO) -> None:
    """Writes the join of tries over adjoining SID ranges, in SID order.

    With tries from `read_trie` memory stays at one array of one of them; the bytes are those that
    `write_trie` gives for the trie over all SIDs.

    Raises:
      ValueError: a trie starts before the previous one ends.
    """
    plan = plan_join(tries, layout)
    arrays = {f"tokens.{level + 1}": tokens for level, tokens in enumerate(plan.tokens)}
    arrays |= {f"child_start.{level + 1}": start for level, start in enumerate(plan.child_start)}
    if plan.row_start is not None:
        arrays["row_start"] = plan.row_start
    # Widest type first keeps every array aligned to its item size, as safetensors requires.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, object] = {
        "__metadata__": {
            "format": TRIE_FORMAT,
            "version": TRIE_VERSION,
            "layout": json.dumps(layout.to_json()),
            "depth": str(len(plan.tokens)),
            "rows": str(plan.num_rows),
        }
    }
    offset = 0
    for name, array in ordered:
        size = array.length * array.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": [array.length],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for _, array in ordered:
        for piece in array.pieces():
            file.write(np.ascontiguousarray(piece).data.cast("B"))


def read_trie(path: str | Path) -> Trie:
    """Opens a trie file; its arrays stay on disk, memory-mapped, until they are touched.

    Raises:
      ValueError: the file is not a trie of a version this code knows, or is cut short.
    """
    # A plain view, because np.memmap costs 3 us an operation; copy-on-write, because torch takes
    # no read-only arrays. Nothing is ever written back.
    mapped = np.memmap(path, np.uint8, mode="c").view(np.ndarray)
    length = int.from_bytes(mapped[:8].tobytes(), "little")
    if not 0 < length <= min(_MAX_HEADER_BYTES, len(mapped) - 8):
        raise ValueError(f"{path} is not a safetensors file: its header would have {length} bytes")
    try:
        header = json.loads(mapped[8 : 8 + length].tobytes())
        metadata = header.pop("__metadata__")
        kind, version = metadata["format"], metadata["version"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is not a trie file") from error
    if (kind, version) != (TRIE_FORMAT, TRIE_VERSION):
        raise ValueError(
            f"{path} has format {kind} version {version}, this code reads {TRIE_FORMAT} version "
            f"{TRIE_VERSION}"
        )
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > len(mapped):
            raise ValueError(f"{path} is cut short: {name} ends at byte {end} of {len(mapped)}")
        tensors[name] = mapped[begin:end].view(_DTYPES[entry["dtype"]])
    depth = int(metadata["depth"])
    return Trie(
        layout=SidLayout.from_json(json.loads(metadata["layout"])),
        tokens=tuple(tensors[f"tokens.{level}"] for level in range(1, depth + 1)),
        child_start=tuple(tensors[f"child_start.{level}"] for level in range(1, depth)),
        row_start=tensors.get("row_start"),
    )
