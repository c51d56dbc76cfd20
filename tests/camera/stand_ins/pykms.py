"""Stands in for kms++'s Python module, which picamera2 imports even where nothing is displayed."""


class _Names(type):
    """A class any of whose attributes is its own name."""

    def __getattr__(cls, name: str) -> str:
        return name


class PixelFormat(metaclass=_Names):
    """The names that picamera2's display code mentions when it is imported."""
