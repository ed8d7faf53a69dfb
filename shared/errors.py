"""Errors, told apart by what the caller does about them."""


class Failure(Exception):
    """Something a person must mend: the process prints the text as one line and exits with 1."""

    exit_code = 1


class Usage(Failure):
    """A bad option or config: one line, exit code 2."""

    exit_code = 2


class BadInput(Failure):
    """A file or message is not what it must be; the text names it and says what is wrong."""


class Unavailable(Exception):
    """The other side cannot answer now: retry with backoff."""


class Rejected(Exception):
    """The other side refused for good: do not retry, report."""


class Unknown(Exception):
    """It may or may not have happened: ask before doing anything else."""


class OutOfSync(Exception):
    """Memory and streams disagree: drop the state and rebuild it from the streams."""
