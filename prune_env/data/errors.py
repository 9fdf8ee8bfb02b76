"""The exception for data that cannot be used."""


class DataError(ValueError):
    """The data cannot be used; the message names the file, class or image, and what was expected."""
