"""Why a model has no graph."""


class CaptureError(Exception):
    """A module has no graph. The message is one sentence that says why."""


class StatefulError(CaptureError):
    """Forward changes numbers or buffers of its modules in a way that a graph would not repeat."""
