"""The configuration file, read and checked as a whole before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from models.ngrams import NgramFeature, vocabulary_size
from models.sid import SidLayout
from models.spm_ngrams import SpmFeature, check_spm
from models.tokenizers import QuantizerConfig, quantizer_config
from pipelines.errors import UsageError
from schemas.config import JobConfig, canonical_json, fingerprint, parse
from semid_transforms import files
from semid_transforms.features import Feature

STREAMED_KINDS = ("rqvae", "moc")
"""Tokenizers that can be trained on rows read from disk."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A validated configuration.

    Attributes:
      job: everything but the tokenizer's and the features' own settings.
      kind: of the tokenizer.
      quantizer: its settings; `job.quantizer` holds those that were set explicitly.
      features: n-gram columns, in order.
    """

    job: JobConfig
    kind: str
    quantizer: QuantizerConfig
    features: tuple[Feature, ...]

    @property
    def layout(self) -> SidLayout:
        """Layout of the SIDs this configuration makes."""
        return SidLayout.fitting(self.quantizer.codebook_sizes, self.quantizer.hierarchical)

    @property
    def tokenizer_fingerprint(self) -> str:
        """Digest over what makes two tokenizers the same kind of thing; not over training."""
        value = dataclasses.asdict(self.quantizer)
        value.pop("training", None)
        return fingerprint({"kind": self.kind, **value})

    @property
    def fit_fingerprint(self) -> str:
        """Digest over everything that decides how a tokenizer is fitted, training included."""
        fit = dataclasses.asdict(self.job.fit)
        fit.pop("tensorboard")  # watching a fit does not change it
        fit["memory_rows"] = min(fit["memory_rows"], fit["sample_rows"])  # more is not used
        return fingerprint({"kind": self.kind, **dataclasses.asdict(self.quantizer), **fit})

    @property
    def template_fingerprint(self) -> str:
        """Digest over what decides an item's text."""
        job = self.job
        return fingerprint(
            {
                "parts": job.text.parts,
                "columns": {f: job.input.columns.get(f, f) for f in job.text.fields},
                "category_delimiter": job.input.category_delimiter,
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the effective configuration, every default written out."""
        return {
            **dataclasses.asdict(self.job),
            "quantizer": {"kind": self.kind, **dataclasses.asdict(self.quantizer)},
            "ngrams": [dataclasses.asdict(feature) for feature in self.features],
        }

    def canonical(self) -> bytes:
        """What of the configuration decides results, as canonical JSON, for fingerprints."""
        config = self.to_json()
        config.pop("resources")  # a run goes on with other machines than it began with
        return canonical_json(config)


def load_settings(path: str | None) -> Settings:
    """Reads and validates a YAML configuration; every default without a path.

    Raises:
      UsageError: the file cannot be read, or a key or value is bad; the message names each.
    """
    value = read_config(path) if path is not None else {}
    try:
        return parse_settings(value)
    except ValueError as error:
        raise UsageError(f"{f'--config {path}: ' if path else ''}{error}") from error


def read_config(path: str) -> dict[str, Any]:
    """Reads a YAML configuration without judging its keys.

    Raises:
      UsageError: the file cannot be read, or is no mapping of sections.
    """
    try:
        value: Any = yaml.safe_load(files.read_bytes(path).decode()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    if not isinstance(value, Mapping):
        raise UsageError(
            f"--config {path}: the configuration must be a mapping of sections, got {value!r:.80}"
        )
    return dict(value)


def parse_settings(value: Any) -> Settings:
    """Validates a configuration mapping.

    Raises:
      ValueError: a key or value is bad; the message names each by its dotted path.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"the configuration must be a mapping of sections, got {value!r:.80}")
    job = parse(JobConfig, value)
    quantizer = dict(job.quantizer)
    kind = quantizer.pop("kind", "rqvae")
    if not isinstance(kind, str):
        raise ValueError(f"quantizer.kind must be a name, got {kind!r}")
    try:
        config_class = quantizer_config(kind)
    except ValueError as error:
        raise ValueError(f"quantizer.kind: {error}") from error
    config: QuantizerConfig = parse(config_class, quantizer, "quantizer")
    features = tuple(
        parse_feature(feature, f"ngrams.{number}") for number, feature in enumerate(job.ngrams)
    )
    names = [feature.name for feature in features]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"ngrams: {', '.join(repeated)} is listed twice; one column per feature")
    settings = Settings(job, kind, config, features)
    check_features(settings, settings.layout)
    _check_fit(settings)
    return settings


def _check_fit(settings: Settings) -> None:
    """Refuses a sample that exceeds memory where rows cannot be streamed.

    Raises:
      ValueError: naming what cannot be streamed, and the fix.
    """
    fit = settings.job.fit
    if fit.sample_rows <= fit.memory_rows:
        return
    if settings.kind not in STREAMED_KINDS:
        reason = f"{settings.kind} is fitted on all rows at once"
    elif fit.supervise is True:
        reason = "categories of streamed rows are not known"
    else:
        return
    raise ValueError(
        f"fit.sample_rows: {fit.sample_rows:,} is more than fit.memory_rows ({fit.memory_rows:,}), "
        f"and {reason}: lower the one or raise the other"
    )


def parse_feature(value: Mapping[str, Any], where: str = "ngrams") -> Feature:
    """Reads one n-gram feature, as a configuration or a manifest has it."""
    if value.get("name") == "spm":
        return parse(SpmFeature, value, where)
    return parse(NgramFeature, value, where)


def require_levels(settings: Settings, layout: SidLayout, kind: str) -> None:
    """Refuses what needs coarse-to-fine levels of a tokenizer that has none, at the start.

    Args:
      settings: of the run.
      layout: of the SIDs it makes.
      kind: of its tokenizer.

    Raises:
      UsageError: the collision policy or a feature needs prefixes; the message names each fix.
    """
    if layout.hierarchical:
        return
    problems = []
    if settings.job.collisions.policy == "reassign":
        problems.append(
            "collisions.policy: reassign moves an item to another last code under the same prefix: "
            "set it to suffix (number items of equal codes) or none (let them share an ID)"
        )
    windows = [feature.name for feature in settings.features if feature.name != "unigram"]
    if windows:
        problems.append(
            f"ngrams: {', '.join(windows)} join{'s' * (len(windows) == 1)} codes that follow each "
            f"other: set ngrams to [{{name: unigram}}] (one id per codebook) or []"
        )
    if problems:
        raise UsageError(
            f"quantizer.kind: the codes of {kind} have no order and no prefixes\n  "
            + "\n  ".join(problems)
            + "\nor use rqvae or rqkmeans"
        )


def check_features(settings: Settings, layout: SidLayout) -> None:
    """Lays every feature out, so that a misfit shows before anything starts.

    Raises:
      ValueError: a feature needs more levels than there are, or its ids do not fit.
    """
    for number, feature in enumerate(settings.features):
        try:
            if isinstance(feature, SpmFeature):
                check_spm(layout.codebook_sizes, feature)
            else:
                vocabulary_size(layout.codebook_sizes, feature)
        except ValueError as error:
            raise ValueError(f"ngrams.{number} ({feature.name}): {error}") from error
