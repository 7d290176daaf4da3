"""Results of an evaluation as JSON, Markdown and a plot."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = int | float | str


@dataclass(frozen=True)
class Table:
    """Figures under a title. What is plotted are the columns in `drawn`, over the first one:

    as curves over powers of two, or where they are `shares` from 0 to 1 as a heat map.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    drawn: Sequence[str]
    unit: str
    shares: bool = False

    def markdown(self) -> str:
        """Markdown that is aligned for readers of plain text too."""
        lines = [list(self.columns), *([_written(cell) for cell in row] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
        cells = [[cell.rjust(w) for cell, w in zip(line, widths, strict=True)] for line in lines]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in cells)])


def _written(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.4f}" if abs(cell) < 1e4 else f"{cell:.3e}"
    return cell if isinstance(cell, str) else f"{cell:,}"


def write_results(
    folder: Path, table: Table, record: Mapping[str, Any], details: Mapping[str, Any]
) -> None:
    """Write results.json, results.md (without `details`), results.svg into a folder that is there.

    Such files are replaced.
    """
    finite = [[_or_none(v) for v in row] for row in table.rows]
    rows = [dict(zip(table.columns, row, strict=True)) for row in finite]
    whole = {"title": table.title, "table": rows, **record, **details}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", "utf-8")
    described = [f"- {k}: `{json.dumps(v, ensure_ascii=False)}`" for k, v in record.items()]
    (folder / "results.md").write_text("\n".join([table.markdown(), "", *described, ""]), "utf-8")
    _plot(folder / "results.svg", table)


def _or_none(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plot(path: Path, table: Table) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # No date and fixed ids: the same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": "results", "font.size": 9}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis: Any = figure.add_subplot(title=table.title, xlabel=table.columns[0])
        columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
        at, values = columns[table.columns[0]], [columns[name] for name in table.drawn]
        if table.shares:
            image = axis.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            axis.set_xticks(range(len(at)), [_written(x) for x in at], rotation=60, ha="right")
            axis.set_yticks(range(len(table.drawn)), table.drawn)
            figure.colorbar(image, label=table.unit)
        else:
            for name, points in zip(table.drawn, values, strict=True):
                axis.plot(at, points, marker="o", markersize=3, label=name)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.set_ylabel(table.unit)
            axis.legend()
        figure.savefig(path, format="svg", metadata={"Date": None})
