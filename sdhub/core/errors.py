"""Everything that sdhub raises on purpose.

SdhubError                  exit 1   the work failed
├── BuildError                       a backend could not build or open a variant
├── EvidenceError                    a variant could not be measured
├── HubError                         the Hub refused, or could not be reached
├── CheckError                       what was published does not load and run
├── UsageError              exit 2   the call is wrong
│   ├── SourceError                  no such checkpoint, or it is broken
│   ├── RecipeError                  a recipe that means nothing
│   ├── UnsupportedError             known, but not to be had here
│   └── MissingExtraError            an extra of sdhub is not installed
└── RefusedError            exit 3   sdhub will not do this
    ├── UnsafeError                  a file that could execute or escape
    ├── LicenseError                 the licence is unknown or forbids it
    └── PrivacyError                 a private or gated source would become public
"""

from __future__ import annotations


class SdhubError(Exception):
    """One line saying what and where; `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BuildError(SdhubError):
    """A backend could not build or open a variant."""


class EvidenceError(SdhubError):
    """A variant could not be measured."""


class HubError(SdhubError):
    """The Hub refused, or could not be reached."""


class CheckError(SdhubError):
    """What was published does not load and run."""


class UsageError(SdhubError):
    """The call is wrong."""

    exit_code = 2


class SourceError(UsageError):
    """No such checkpoint, or it is broken."""


class RecipeError(UsageError):
    """A recipe that means nothing."""


class UnsupportedError(UsageError):
    """Known, but not to be had here."""


class MissingExtraError(UsageError):
    """An extra of sdhub is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"{module} is not installed", hint=f'install it with: pip install "sdhub[{extra}]"')
        self.extra = extra


class RefusedError(SdhubError):
    """sdhub will not do this."""

    exit_code = 3


class UnsafeError(RefusedError):
    """A file that could execute something or escape its folder."""


class LicenseError(RefusedError):
    """The licence is unknown or forbids it."""


class PrivacyError(RefusedError):
    """A private or gated source would become public."""
