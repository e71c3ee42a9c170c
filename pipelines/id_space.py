"""Which ID space a run works in: the one that is published, or a new one under another tokenizer.

Everything that makes IDs incomparable is refused here, before any work is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from models.sid import SidLayout
from models.tokenizers import check_start
from pipelines.catalog_input import CatalogInput
from pipelines.errors import InputRefusedError, MismatchError, UsageError
from pipelines.fitted_tokenizers import read_tokenizer, resolve_tokenizer
from pipelines.job import Job
from pipelines.root import Published
from pipelines.settings import Settings, check_features, require_levels
from schemas.config import canonical_json, fingerprint
from schemas.manifest import Manifest
from semid_transforms.diffing import Leaving
from semid_transforms.reading import has_rows


@dataclasses.dataclass(frozen=True)
class IdSpace:
    """What the IDs of a run are made with.

    Attributes:
      layout: of the SIDs.
      quantizer: configuration of the tokenizer, `kind` included; plain JSON values.
      tokenizer: its id; None when it has yet to be found or fitted.
      leaves: layout of the published SIDs when every item leaves them.
      same_encoder: whether published embeddings serve.
      same_hashes: whether published content hashes are made as this run makes them.
    """

    layout: SidLayout
    quantizer: dict[str, Any]
    tokenizer: str | None = None
    leaves: SidLayout | None = None
    same_encoder: bool = True
    same_hashes: bool = True

    @property
    def leaving(self) -> Leaving | None:
        """How the catalog is compared with what is published, when its items leave it."""
        return None if self.leaves is None else Leaving(self.same_hashes)


@dataclasses.dataclass(frozen=True)
class _Basis:
    """What a run must fit: a published generation, or the tokenizer that was asked for."""

    name: str
    encoder: str
    template: str
    quantizer: Mapping[str, Any]
    layout: SidLayout
    tokenizer: str
    side: str


def open_space(job: Job, catalog: CatalogInput, parent: Published) -> IdSpace:
    """Decides what IDs a publishing run makes.

    Without `job.tokenizer` it is the published space, or the configured one when nothing is
    published. Naming the published tokenizer changes nothing, so that a scheduler may go on doing
    so; naming another begins a new space.

    Raises:
      MismatchError: encoder, text template or tokenizer settings are not those of the space; the
        message names both sides.
      UsageError: there is no such tokenizer, or a feature does not fit its codes.
      InputRefusedError: the encoder cannot be that of the space, for the catalog has no row.
    """
    settings, published = job.settings, parent.manifest
    asked = None
    if job.tokenizer is not None:
        asked = resolve_tokenizer(job.root, job.tokenizer, "--tokenizer")
    if asked is None or (published is not None and asked == published.fingerprints.tokenizer):
        if published is None:
            return _configured(settings)
        basis = _published_basis(parent, published)
        differences = _differences(settings, catalog, basis)
        policies = settings.job.collisions.policy, published.config["collisions"]["policy"]
        if policies[1] == "none" != policies[0]:  # its shared IDs can never become unique
            differences.append(f"collisions.policy {policies[0]} here, {policies[1]} published")
        _refuse(basis, differences)
        _check_codes(settings, basis)
        read_tokenizer(job.root, basis.tokenizer)  # whole, and of a format this release reads
        return IdSpace(basis.layout, dict(basis.quantizer), basis.tokenizer)
    fitted = read_tokenizer(job.root, asked)
    basis = _Basis(
        name=f"tokenizer {asked[:16]}",
        encoder=fitted.encoder,
        template=fitted.template,
        quantizer=fitted.settings,
        layout=fitted.layout,
        tokenizer=asked,
        side="fitted",
    )
    _refuse(basis, _differences(settings, catalog, basis))
    _check_codes(settings, basis)
    space = IdSpace(basis.layout, dict(basis.quantizer), asked)
    return space if published is None else _leaving(space, settings, catalog, published)


def open_fit_space(job: Job, catalog: CatalogInput, parent: Published) -> IdSpace:
    """Decides what a run that only fits a tokenizer embeds.

    Under another encoder or template than the published one, everything is embedded anew: the
    tokenizer can begin a new ID space.

    Raises:
      MismatchError: a warm start from a tokenizer of other embeddings, of another kind or with
        another network; both sides are named.
      UsageError: a warm start and nothing is published.
    """
    settings, published = job.settings, parent.manifest
    space = _configured(settings)
    if published is None:
        if job.warm_start:
            raise UsageError(
                f"--warm-start: nothing is published under {job.root.path} to start from"
            )
        return space
    basis = _published_basis(parent, published)
    differences = _content_differences(settings, catalog, basis)
    if job.warm_start:
        fix = (
            "a warm start goes on from the published tokenizer: restore these settings, or fit "
            "without --warm-start"
        )
        try:
            start = read_tokenizer(job.root, basis.tokenizer).quantizer
            check_start(settings.quantizer, start, start.embedding_dim)
        except ValueError as error:
            differences.append(str(error))
        _refuse(basis, differences, fix)
    return _leaving(space, settings, catalog, published) if differences else space


def _configured(settings: Settings) -> IdSpace:
    return IdSpace(settings.layout, settings.to_json()["quantizer"])


def _leaving(
    space: IdSpace, settings: Settings, catalog: CatalogInput, published: Manifest
) -> IdSpace:
    was = published.fingerprints
    same_encoder = catalog.encoder["fingerprint"] == was.encoder
    same_template = not catalog.embeds_text or settings.template_fingerprint == was.template
    # A content hash is over the text, or the vectors that the catalog brings, or both.
    text_only = "columns" not in catalog.encoder and "columns" not in published.encoder
    return dataclasses.replace(
        space,
        leaves=SidLayout.from_json(was.layout),
        same_encoder=same_encoder,
        same_hashes=same_template and (same_encoder or text_only),
    )


def _published_basis(parent: Published, published: Manifest) -> _Basis:
    return _Basis(
        name=f"generation {parent.generation}",
        encoder=published.fingerprints.encoder,
        template=published.fingerprints.template,
        quantizer=published.config["quantizer"],
        layout=SidLayout.from_json(published.fingerprints.layout),
        tokenizer=published.fingerprints.tokenizer,
        side="published",
    )


def _check_codes(settings: Settings, basis: _Basis) -> None:
    require_levels(settings, basis.layout, basis.quantizer["kind"])
    try:
        check_features(settings, basis.layout)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _refuse(basis: _Basis, differences: list[str], fix: str | None = None) -> None:
    if differences:
        fix = fix or (
            "IDs made differently cannot share an ID space: go back to the configuration that made "
            "it, or run `semid fit` with this one and publish a new ID space with `semid tokenize "
            "--tokenizer ID`, or take a new --root"
        )
        raise MismatchError(
            f"this run does not match {basis.name}:\n  " + "\n  ".join(differences) + f"\n{fix}"
        )


def _differences(settings: Settings, catalog: CatalogInput, basis: _Basis) -> list[str]:
    """Lists everything that would make IDs incomparable, both sides.

    Of the tokenizer only what the configuration sets explicitly is compared: a fitted tokenizer is
    frozen, so a default that a later version changed means nothing to it.
    """
    found = _content_differences(settings, catalog, basis)
    effective = settings.to_json()["quantizer"]
    different = _different_settings(settings.job.quantizer, effective, basis.quantizer)
    details = [
        f"{path} {ours} here, {theirs} {basis.side}" for path, (ours, theirs) in different.items()
    ]
    if details:
        frozen = {key: value for key, value in basis.quantizer.items() if key != "training"}
        found.append(
            f"tokenizer settings {settings.tokenizer_fingerprint[:16]} here, "
            f"{fingerprint(frozen)[:16]} {basis.side} with tokenizer {basis.tokenizer[:16]}"
        )
        if settings.layout != basis.layout:
            ours, theirs = _sizes(settings.layout), _sizes(basis.layout)
            found.append(f"layout {ours} here, {theirs} {basis.side}")
    return found + details


def _content_differences(settings: Settings, catalog: CatalogInput, basis: _Basis) -> list[str]:
    if catalog.encoder["fingerprint"] != basis.encoder and not has_rows(catalog.reader):
        number = len(catalog.reader.sources)  # no row says what its embeddings would be
        raise InputRefusedError(
            f"no usable item: 0 rows read from {number} file{'s' * (number != 1)}"
        )
    pairs = [("encoder", catalog.encoder["fingerprint"], basis.encoder)]
    if catalog.embeds_text:  # a template makes nothing where embeddings replace text
        pairs.append(("text template", settings.template_fingerprint, basis.template))
    return [
        f"{name} {ours[:16]} here, {theirs[:16]} {basis.side}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]


def _different_settings(
    explicit: Mapping[str, Any], effective: Any, fitted: Any, path: str = "quantizer"
) -> dict[str, tuple[Any, Any]]:
    """Returns explicit settings that the tokenizer was not fitted with: {path: (ours, theirs)}."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in explicit.items():
        if key == "training":
            continue
        ours = effective[key]
        theirs = fitted.get(key) if isinstance(fitted, Mapping) else None
        if isinstance(value, Mapping) and isinstance(theirs, Mapping):
            found |= _different_settings(value, ours, theirs, f"{path}.{key}")
        elif canonical_json(ours) != canonical_json(theirs):
            found[f"{path}.{key}"] = (list(ours) if isinstance(ours, tuple) else ours, theirs)
    return found


def _sizes(layout: SidLayout) -> str:
    return " x ".join(map(str, layout.codebook_sizes))
