"""What a user can mend: commands show the message alone, without a traceback."""


class UserError(ValueError):
    """A wrong file, folder, option or config; the message names the thing, its value and the remedy."""
