"""The one error that a user can mend: bad input, told in one sentence."""


class InputError(ValueError):
    """Input that cannot be used; the message says what was got, what was expected and the remedy.

    The command line prints the message on one line and exits with status 2.
    """
