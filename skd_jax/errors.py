"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in files, settings or the environment that the message tells how to mend.

    `main.py` prints the message alone, without a traceback, and exits with status 2.
    """
