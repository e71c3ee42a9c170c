"""Who may import whom: the arrows between packages, read from the source without running it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "pipelines": {"pipelines", "semid_transforms", "models", "schemas"},
    "semid_transforms": {"semid_transforms", "models", "schemas"},
    "models": {"models"},
    "schemas": {"schemas"},
}
WITHOUT_BEAM = {"models", "schemas"}
TABLE_READERS = {"items_reader.py", "embedding_stream.py"}
"""Modules of `models` that read published tables, and may therefore import Arrow."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).glob("**/*.py"))


def imports(source: str) -> set[str]:
    """Returns the absolute modules a source imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow: import by full name"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def wrong_arrows(package: str, name: str, source: str) -> list[str]:
    """Returns what a module of a package imports but may not."""
    wrong = []
    for module in sorted(imports(source)):
        top = module.split(".")[0]
        ours = top in {*ALLOWED, "tests", "benchmarks"}
        if ours and top not in ALLOWED[package]:
            wrong.append(module)
        if package in WITHOUT_BEAM and top == "apache_beam":
            wrong.append(module)
        if package == "models" and top == "pyarrow" and name not in TABLE_READERS:
            wrong.append(module)
        if package == "schemas" and top in ("torch", "faiss", "numpy") and name != "arrays.py":
            wrong.append(module)
    return wrong


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_arrows(package):
    paths = modules(package)
    assert len(paths) > 3
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in paths
        if (found := wrong_arrows(package, path.name, path.read_text("utf-8")))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("models", "from schemas.tables import CATALOG"),
        ("models", "def late():\n    import apache_beam as beam"),
        ("models", "import pyarrow.parquet as pq"),
        ("schemas", "import models.sid"),
        ("schemas", "from apache_beam import coders"),
        ("semid_transforms", "from pipelines import root"),
        ("pipelines", "from tests.pipelines import jobs"),
    ],
)
def test_a_wrong_arrow_is_found(package, source):
    assert wrong_arrows(package, "module.py", source)


def test_main_modules_hold_no_class():
    for path in ROOT.glob("*/__main__.py"):
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        assert not [node.name for node in nodes if isinstance(node, ast.ClassDef)], path


def test_operators_alone_see_the_command_line():
    """Only `pipelines` reads argv or decides exit codes."""
    for package in ("semid_transforms", "models", "schemas"):
        for path in modules(package):
            names = imports(path.read_text("utf-8"))
            assert not names & {"argparse", "sys.argv", "sys.exit"}, path


def test_transforms_are_labelled():
    """Every `|` onto a transform carries a label, so that no two runs of a stage share a name."""
    unlabelled = []
    for package in ("semid_transforms", "pipelines"):
        for path in modules(package):
            unlabelled += [
                f"{path.name}:{node.lineno}"
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.BinOp)
                and isinstance(node.op, ast.BitOr)
                and isinstance(node.right, ast.Call)
                and _is_transform(node.right.func)
            ]
    assert unlabelled == []


def _is_transform(function: ast.expr) -> bool:
    """True for `beam.ParDo`, `beam.GroupByKey`, `RunInference` and calls on their results."""
    while isinstance(function, ast.Attribute):
        if isinstance(function.value, ast.Name) and function.value.id == "beam":
            return True
        function = function.value.func if isinstance(function.value, ast.Call) else function.value
    return isinstance(function, ast.Name) and function.id == "RunInference"
