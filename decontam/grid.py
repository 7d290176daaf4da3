"""Tables of finished cells, as plain text."""

from collections.abc import Sequence
from typing import NamedTuple

COLUMNS = 100


class Grid(NamedTuple):
    """A table of finished cells, for plain text and for a page alike."""

    caption: str
    header: tuple[str, ...]
    align: str
    """For each column `<` (text) or `>` (figures)."""

    rows: list[tuple[str, ...]]
    note: str = ""

    def __str__(self) -> str:
        """Aligned plain text; text columns are shortened so that lines have at most 100 columns."""
        lines = [list(map(printable, line)) for line in (self.header, *self.rows)]
        widths = self._widths(lines)
        text = [self.caption]
        for line in lines:
            cells = zip(line, widths, self.align, strict=True)
            text.append("  ".join(f"{shorten(c, w):{a}{w}}" for c, w, a in cells).rstrip())
        return "\n".join([*text, self.note] if self.note else text)

    def _widths(self, lines: Sequence[Sequence[str]]) -> list[int]:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        least = [max(len(name), 12) for name in self.header]
        while sum(widths) + 2 * (len(widths) - 1) > COLUMNS:
            shrinkable = [i for i, a in enumerate(self.align) if a == "<" and widths[i] > least[i]]
            if not shrinkable:
                break
            widest = max(shrinkable, key=widths.__getitem__)
            widths[widest] -= 1
        return widths


def shorten(text: str, most: int) -> str:
    """At most `most` characters, cut in the middle with an ellipsis."""
    if len(text) <= most:
        return text
    head = most // 2
    tail = most - head - 1
    return f"{text[:head]}…{text[len(text) - tail :]}"


def printable(text: str) -> str:
    """One line without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
