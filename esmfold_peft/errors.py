"""The exceptions that a user's input, and another process, can cause."""

from typing import ClassVar


class UserError(Exception):
    """Something in the user's files or settings is wrong.

    The message is one line that names the value and its place; commands print it and exit with the
    code.
    """

    exit_code: ClassVar[int] = 2


class LostProcessError(UserError):
    """Another process of the training has ended before this one; it has said why, if it could."""


class BusyError(UserError):
    """Another process has what this one needs; the same command may succeed later."""

    exit_code: ClassVar[int] = 69  # EX_UNAVAILABLE of sysexits.h
