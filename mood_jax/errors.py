"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in the input, said in one line: what is wrong, and what to do about it.

    Scripts print the line without a traceback and exit with status 2 (see `mood_jax.cli.run`).
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
