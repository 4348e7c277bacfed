"""Why a row was not measured."""


class Skipped(Exception):
    """This machine lacks something; the text says what the row needs."""

    def __str__(self):
        return "needs " + super().__str__()
