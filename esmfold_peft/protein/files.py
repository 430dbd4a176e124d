"""The bytes of a file, plain or gzip-compressed."""

import gzip
import zlib
from pathlib import Path

from esmfold_peft.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """Reads a whole file and decompresses it if its content, not its name, says gzip.

    Args:
        path: of a file that must not be empty.

    Raises:
        UserError: the file is missing, unreadable, empty, or a damaged gzip file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: damaged gzip file ({error})") from error
    if not data.strip():
        raise UserError(f"{path}: the file is empty")
    return data
