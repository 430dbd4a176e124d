"""The direction of imports: a part of the package knows only what stands to its left."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "esmfold_peft"
ORDER = [
    "protein",
    "geometry",
    "datasets",
    "preparation",
    "adapters",
    "model",
    "metrics",
    "losses",
    "training",
    "evaluation",
    "prediction",
    "search",
    "commands",
    "cli",
]
ANYWHERE = {"errors", "config", "config_io", "console", "csv_text", "devices"}
ANYWHERE |= {"journal", "versions", "__version__"}
COMMANDS = {
    *("prepare", "train", "replay", "evaluate", "predict", "search_commands"),
    *("adapter_commands", "weights_commands"),
}


def layer(part: str) -> int:
    """Place of a module or folder of the package in the order; -1 for what all may import."""
    if part in ANYWHERE:
        return -1
    return ORDER.index("commands" if part in COMMANDS else part)


def imported_parts(file: Path) -> set[str]:
    """Parts of the package that a file imports, anywhere in its text."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("esmfold_peft"):
            names = node.module.split(".")[1:] or [alias.name for alias in node.names]
            parts.add(names[0])
        if isinstance(node, ast.Import):
            parts |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("esmfold_peft.")
            }
    return parts


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_left(file: Path):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for part in imported_parts(file):
        assert layer(part) <= layer(own), f"{file.name} imports {part}"


def test_a_wrong_direction_would_be_found(tmp_path: Path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from esmfold_peft.training.optim import x\n")
    assert imported_parts(file) == {"training"}
    assert layer("training") > layer("model")


def modules_imported(file: Path) -> set[str]:
    """Top-level names of everything that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_openfold3_has_one_importer():
    importers = [f.name for f in FILES if "openfold3" in modules_imported(f)]
    assert importers == ["openfold.py"]


def test_proteins_need_no_torch():
    for file in (PACKAGE / "protein").glob("*.py"):
        assert "torch" not in modules_imported(file), file.name
