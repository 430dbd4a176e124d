"""Versions of installed packages, for the record of what a run or an evaluation was made with."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from esmfold_peft import __version__

OWN = "esmfold-peft"


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Version by package; None where it has no metadata. This package need not be installed.

    Args:
        packages: as the package index names them.
    """
    return {name: __version__ if name == OWN else _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
