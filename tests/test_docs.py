"""What the documents promise is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pipelines.settings import parse_settings

ROOT = Path(__file__).parent.parent


def test_ci_runs_the_readme_commands_exactly() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    first, second = (block.strip() for block in blocks[:2])
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "semid quickstart" in first
    assert "pytest" in second
    assert first in script
    assert second in script


def test_the_readme_example_is_a_valid_configuration() -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    example = yaml.safe_load(block.group(1))
    settings = parse_settings(example)
    assert settings.job.encoder.model == example["encoder"]["model"]


def test_documented_defaults_are_the_defaults() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    block = re.search(r"<!-- defaults -->\n```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    documented = yaml.safe_load(block.group(1))
    assert parse_settings(documented).to_json() == parse_settings({}).to_json()
    effective = parse_settings({}).to_json()
    assert _keys(documented) == _keys(effective)


def test_every_link_between_documents_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _keys(value: object, path: str = "") -> set[str]:
    """Returns the dotted paths of all keys; columns and lists are values."""
    if not isinstance(value, dict) or path == "input.columns":
        return {path}
    found = set()
    for key, inner in value.items():
        found |= _keys(inner, f"{path}.{key}".lstrip("."))
    return found
