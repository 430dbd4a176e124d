"""Versions of installed packages, which runs and evaluations record."""

from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from esmfold_peft import __version__


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Version by the package's name on the index; None where it has no metadata."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in found:
        with suppress(PackageNotFoundError):
            # This package need not be installed.
            found[name] = __version__ if name == "esmfold-peft" else version(name)
    return found
