"""The direction of imports: a room of the package knows only what stands to its left."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "esmfold_peft"
ORDER = [
    *("disk", "protein", "geometry", "datasets", "preparation", "adapters", "model", "weights"),
    *("metrics", "losses", "runs", "training", "evaluation", "prediction", "search", "commands"),
    "cli",
]
ANYWHERE = {"errors", "config", "console", "devices"}
"""What every room may import, and what imports no room."""

FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name == "cli.py")


def name_of(file: Path) -> str:
    """A module's name within the package: `training.engines.zero`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES} | {p.stem for p in PACKAGE.glob("*.py")}


@cache
def imports_of(file: Path) -> frozenset[str]:
    """Modules of the package that a file imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("esmfold_peft"):
            package = (node.module or "").removeprefix("esmfold_peft").removeprefix(".")
            for alias in node.names:
                full = f"{package}.{alias.name}".removeprefix(".")
                found.add(full if full in MODULES else package)
        if isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            found |= {n.removeprefix("esmfold_peft.") for n in names if "esmfold_peft." in n}
    return frozenset(found - {""})


def room(module: str) -> str:
    return module.split(".")[0]


def place(module: str) -> int:
    """Place of a module's room in the order; -1 for what all may import."""
    return -1 if room(module) in ANYWHERE else ORDER.index(room(module))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_module_imports_only_from_its_left(file: Path):
    wrong = {m for m in imports_of(file) if place(m) > place(name_of(file))}
    assert not wrong, f"{name_of(file)} imports {sorted(wrong)}"


def circle(graph: dict[str, frozenset[str]]) -> list[str]:
    """Modules that import one another in a circle; none where there is no circle."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        found = next((c for m in sorted(graph[module]) if (c := search(m, [*path, module]))), [])
        done.add(module)
        return found

    return next((found for module in sorted(graph) if (found := search(module, []))), [])


@pytest.mark.parametrize("name", sorted({room(name_of(file)) for file in FILES}))
def test_no_circle_within_a_room(name: str):
    own = {name_of(file): imports_of(file) for file in FILES if room(name_of(file)) == name}
    graph = {module: frozenset(m for m in found if m in own) for module, found in own.items()}
    assert not circle(graph)


def test_a_wrong_direction_and_a_circle_would_be_found(tmp_path: Path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from esmfold_peft.training.optim import x\n")
    assert imports_of(file) == {"training.optim"}
    assert place("training.optim") > place("model.folding")
    one = frozenset
    assert circle({"a": one("b"), "b": one("c"), "c": one("b")}) == ["b", "c"]
    assert not circle({"a": one("bc"), "b": one("c"), "c": one()})


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


def test_evaluating_and_predicting_need_no_training():
    for file in FILES:
        name = name_of(file)
        if room(name) in ("evaluation", "prediction") or name.startswith("commands.pred"):
            assert "training" not in {room(m) for m in imports_of(file)}, name
