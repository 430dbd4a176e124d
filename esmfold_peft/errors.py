"""The one exception that a user's input can cause."""


class UserError(Exception):
    """Something in the user's files or settings is wrong.

    The message is one line that names the value and its place; commands print it and exit with code
    2.
    """
