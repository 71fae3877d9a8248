"""The one exception that means "your input": the command line prints it as a single line and exits with code 2."""


class UserError(Exception):
    """Something the user gave is wrong. The message says what was given, what was expected and what to do."""
