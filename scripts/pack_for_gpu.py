"""Packs the Python packages that a GPU machine without network lacks into one archive.

    python scripts/pack_for_gpu.py                     # here, where esmfold-peft is installed
    python -m pip list --format=freeze > host.txt      # on the GPU machine
    python scripts/pack_for_gpu.py --host host.txt --compiled

Takes what is installed here and esmfold-peft needs, directly or not. What the machine has is left
out: the packages that --host lists, if their version fits; without it torch, NumPy and what these
need. Compiled packages are packed only by --compiled, and the largest ones only up to --limit. The
command names what is not packed, which the machine must have itself. There, unpack the archive
beside a checkout:

    python -m zipfile -e gpu_packages.zip gpu_packages
    export PYTHONPATH=$PWD/gpu_packages:$PWD
"""

import argparse
import re
import zipfile
import zlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "esmfold-peft"

USUAL = ("torch", "numpy")
"""What an image for PyTorch has, with all that it needs."""

UNNEEDED = (
    *("awscli", "cwevals", "kalign-python", "memory-profiler", "pdbeccdutils", "rdkit", "wandb"),
)
"""What openfold3 asks for and never imports for folding."""

ENTRY = 200
"""Bytes of a file's name and its other entries in an archive, about."""

COMPILED = (".so", ".pyd", ".dylib")
UNUSED = re.compile(
    r"(^|/)(tests?|__pycache__)/|\.pyc$|\.pth$|^\.\.|/direct_url\.json$|/components\.bcif$"
)
"""Files that a machine can do without: tests, caches, commands, links to a checkout, and biotite's
dictionary of all ligands (40 MiB)."""


@dataclass(frozen=True)
class Package:
    """An installed package.

    Attributes:
        name: with its version.
        files: those worth packing, by their names in the archive.
        compiled: some of the files run on one kind of machine only.
        size: bytes when packed.
    """

    name: str
    files: dict[str, Path]
    compiled: bool
    size: int


def main(words: list[str] | None = None) -> None:
    """Writes the archive and says what is in it.

    Args:
        words: of the command line.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--host", type=Path, metavar="FILE", help="pip list --format=freeze of the machine")
    add("--compiled", action="store_true", help="the machine has this Python, system, processor")
    text = f"these, and what only they need (default: {' '.join(UNNEEDED)})"
    add("--without", nargs="*", default=UNNEEDED, metavar="NAME", help=text)
    add("--limit", type=float, default=1024.0, help="MiB of the archive (default: 1024)")
    add("--output", type=Path, default=Path("gpu_packages.zip"))
    args = parser.parse_args(words)
    needed = required([Requirement(PROJECT)], {canonicalize_name(name) for name in args.without})
    names = lacking(needed, host_versions(args.host))
    packed, left = chosen([package_of(name) for name in names], args.limit, args.compiled)
    with zipfile.ZipFile(args.output, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in packed:
            for name, path in package.files.items():
                archive.write(path, name)
    size = args.output.stat().st_size
    print(f"{args.output}: {len(packed)} packages, {_mebibytes(size)}")
    print("  " + ", ".join(each.name for each in packed))
    print(f"The machine must have {len(left)} others itself:")
    for each, why in left:
        print(f"  {each.name}: {why}, {_mebibytes(each.size)}")


def required(
    asked: Iterable[Requirement], without: Container[str] = ()
) -> dict[str, list[Requirement]]:
    """All installed packages that some need, directly or not, with what is asked of each.

    Args:
        asked: requirements to begin with.
        without: names of packages that are not followed.
    """
    found: dict[str, list[Requirement]] = {}
    queue, seen = list(asked), set[tuple[str, str]]()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in without:
            continue
        found.setdefault(name, []).append(requirement)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen or (own := installed(name)) is None:
                continue
            seen.add((name, extra))
            needs = map(Requirement, own.requires or ())
            queue += [r for r in needs if not r.marker or r.marker.evaluate({"extra": extra})]
    return {name: asked for name, asked in found.items() if installed(name)}


def installed(name: str) -> Distribution | None:
    """An installed package; None where there is none.

    Args:
        name: of the package.
    """
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def host_versions(file: Path | None) -> dict[str, str]:
    """Versions of the packages of a machine, by name.

    Args:
        file: what pip listed there; None takes what an image for PyTorch has.

    Raises:
        SystemExit: it cannot be read, or lists nothing.
    """
    if file is None:
        usual = required(Requirement(name) for name in USUAL)
        return {name: distribution(name).version for name in usual}
    try:
        pairs = [line.split("==") for line in file.read_text().splitlines() if "==" in line]
    except OSError as error:
        raise SystemExit(f"pack_for_gpu: --host: {file}: {error.strerror}") from error
    if not pairs:
        raise SystemExit(f"pack_for_gpu: --host: {file}: no line has the form name==version")
    return {canonicalize_name(name.strip()): version.strip() for name, version in pairs}


def lacking(needed: dict[str, list[Requirement]], host: dict[str, str]) -> list[str]:
    """The packages that a machine has not, or in a version that does not fit.

    Args:
        needed: by name.
        host: versions by name.
    """

    def fits(requirement: Requirement, version: str) -> bool:
        return requirement.specifier.contains(version, prereleases=True)

    return sorted(
        name
        for name, asked in needed.items()
        if name not in host or not all(fits(requirement, host[name]) for requirement in asked)
    )


def package_of(name: str) -> Package:
    """What is installed of a package.

    Args:
        name: of it.
    """
    own = distribution(name)
    paths = {str(file): Path(str(own.locate_file(file))) for file in own.files or ()}
    files = {k: path for k, path in paths.items() if not UNUSED.search(k) and path.is_file()}
    return Package(
        name=f"{name} {own.version}",
        files=files,
        compiled=any(k.endswith(COMPILED) or ".so." in k for k in files),
        size=sum(len(zlib.compress(path.read_bytes())) + ENTRY for path in files.values()),
    )


def chosen(
    packages: list[Package], limit: float, compiled: bool
) -> tuple[list[Package], list[tuple[Package, str]]]:
    """What is packed, and what is not and why.

    Args:
        packages: all that are lacking.
        limit: MiB of all that are packed.
        compiled: whether compiled ones can be used.
    """
    packed, left, total = [], [], 0
    for package in sorted(packages, key=lambda package: package.size):
        if package.compiled and not compiled:
            left.append((package, "compiled"))
        elif total + package.size > limit * 2**20:
            left.append((package, "too large"))
        else:
            packed.append(package)
            total += package.size
    return packed, left


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
