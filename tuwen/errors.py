"""The one exception a user's mistake raises."""


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what is wrong, where, and how to fix it.

    The command line prints it without a traceback and exits with status 1.
    """
