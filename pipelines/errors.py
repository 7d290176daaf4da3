"""The errors a user can mend, and how close names are suggested."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend: the message names the place, the rule and the way out.

    Commands print the message alone and exit with status 2; no traceback.
    """


class FaultsError(UserError):
    """Several faults of one file or one stage, all reported at once."""

    def __init__(self, where: str, faults: Iterable[str]) -> None:
        self.where = where
        self.faults = tuple(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}"
        super().__init__("\n".join([f"{where}: {count}", *(f"  {fault}" for fault in self.faults)]))

    def __reduce__(self) -> tuple[type["FaultsError"], tuple[str, tuple[str, ...]]]:
        return FaultsError, (self.where, self.faults)


class InputFault(UserError):
    """An input file that cannot be trusted: it stops the build."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'weight'?` where one of `known` is close to `name`, else nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
