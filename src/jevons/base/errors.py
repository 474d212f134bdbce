"""Every error jevons raises on purpose.

JevonsError
├── ConfigError          a value from a file, a flag or the environment is wrong; names it, quotes it, says the rule
│   └── UnknownFigure    a result hangs on a figure that nobody published, and none was given
├── RequestError         a value in a client's request is wrong; carries the field, the HTTP status and a code
├── CapacityError        the work is valid but does not fit now; the caller may queue, shed or retry
│   ├── NoFreeBlocks
│   └── NoWorker
├── StoreError           a store cannot give or take a block; carries the reason it is counted under
├── EngineError          an engine broke its contract or went away; carries the worker
│   └── EngineGone
└── ModelError           a model's files are missing, broken or of a kind we cannot run

Anything else that escapes is a bug in jevons and keeps its own type.
"""

from __future__ import annotations


class JevonsError(Exception):
    """Base of all errors above; `except JevonsError` never hides a bug."""


class ConfigError(JevonsError):
    """A value from a file, a flag or the environment is not usable."""


class UnknownFigure(ConfigError):
    """What is asked for hangs on a figure that is not known.

    Args:
        figure: its name in the catalog.
    """

    def __init__(self, figure: str) -> None:
        super().__init__(f"{figure}: is not known: nobody published it; give it in a file of yours, --catalog FILE")
        self.figure = figure


class RequestError(JevonsError):
    """A value in a client's request is not usable.

    Args:
        message: what is wrong, the value, the rule.
        param: the field's name, dotted, as the client wrote it; None where no field is to blame.
        status: HTTP status, 400 to 499.
        code: OpenAI's short error code, if one fits.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code


class CapacityError(JevonsError):
    """Valid work that does not fit right now."""


class NoFreeBlocks(CapacityError):
    """The pool has fewer free blocks than asked for."""


class NoWorker(CapacityError):
    """No worker may take this request."""


class TooLate(CapacityError):
    """A request would miss the time it asked for, and wants to be refused rather than served so late.

    Args:
        message: what is predicted and what was asked.
        retry_after_s: when to come again.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreError(JevonsError):
    """A store cannot give or take a block. Whoever asked goes on without it and counts the reason.

    Args:
        reason: one of the words of `facts.block.LOST`.
        message: what happened, where.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StateError(JevonsError):
    """What was kept of an earlier life cannot be used. Whoever wanted it begins with nothing, and counts that."""


class EngineError(JevonsError):
    """An engine broke its contract."""


class EngineGone(EngineError):
    """The engine went away before the work was done; what it had not yet sent is lost."""


class ModelError(JevonsError):
    """A model's files are missing, broken or of a kind we cannot run."""
