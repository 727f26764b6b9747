"""Errors that a user can fix; commands print the message without a traceback."""


class UserError(ValueError):
    """A wrong file, folder, option or config; the message names it, its value and the remedy."""
