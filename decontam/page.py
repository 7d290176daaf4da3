"""One HTML page that shows what a scan found, passages side by side; it needs no other file."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from decontam.coverage import CoverageRow, coverage_grid
from decontam.excerpt import CONTEXT_CHARACTERS
from decontam.grid import Grid, shorten
from decontam.page_assets import SCRIPT, STYLE
from decontam.report import (
    DECISIONS,
    NOTHING,
    OVERLAP_SCHEMA,
    SourceTotals,
    count_documents,
    instance_grid,
    scenario_grids,
    scenario_order,
    source_grid,
    split_boilerplate,
)

_RULES = {
    "ngram": "a row of words as long as the index's n, or longer",
    "whole": "all of a benchmark text that has fewer words than that",
    "no_words": "such a row with hardly a word that has letters, as in tables of figures",
    "many_scenarios": "such a row that several scenarios share",
    "frequent": "such a row that is common in ordinary text",
}
_MOST_CHARACTERS = 400
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_LINE_ENDS = re.compile(r"[^\S\n]*\n\s*")


def write_page(
    overlaps: pa.Table,
    coverage: Sequence[CoverageRow],
    totals: Mapping[str, SourceTotals],
    *,
    title: str,
    full_table: str,
    most: int = 2000,
) -> str:
    """A self-contained page: tables, then passages with filters.

    The same content gives the same page, whatever the order of the rows. Documents can put no
    markup into it, and its content security policy runs no script and fetches no file but its own.

    Args:
        overlaps: rows of `OVERLAP_SCHEMA`.
        coverage: what the index holds.
        totals: what was scanned, by source.
        title: heading of the page.
        full_table: where the reader finds all rows, such as the name of the file beside the page.
        most: passages shown; of more, the longest of each scenario and rule come first.
    """
    grids = [*scenario_grids(overlaps, coverage)]
    grids += [source_grid(overlaps, totals)] if totals else []
    grids += [instance_grid(overlaps, most=20)] if len(overlaps) else []
    grids += [coverage_grid(coverage)] if coverage else []
    shown = strongest(overlaps, most)
    choices = _choices(shown, scenario_order(overlaps, coverage))
    left_out = len(overlaps) - len(shown)
    main = [
        f"<h1>{inline(title)}</h1>",
        *(f"<p>{sentence}</p>" for sentence in _headline(overlaps)),
        '<h2 id="tables">In figures</h2>',
        *map(_grid, grids),
        '<h2 id="passages">Passages</h2>',
        *_passages(shown, choices, left_out=left_out, full_table=full_table),
    ]
    return _document(title, main)


def strongest(overlaps: pa.Table, most: int) -> pa.Table:
    """At most `most` rows, the longest of each (scenario, rule) first, in an order of their own."""
    overlaps = overlaps.select(OVERLAP_SCHEMA.names)
    groups = [("scenario", "ascending"), ("rule", "ascending"), ("n_words", "descending")]
    rest = [(n, "ascending") for n in OVERLAP_SCHEMA.names if n not in dict(groups)]
    ordered = overlaps.sort_by([*groups, *rest])
    if len(ordered) <= most:
        return ordered
    keys = zip(ordered["scenario"].to_pylist(), ordered["rule"].to_pylist(), strict=True)
    places = [place for _, group in groupby(keys) for place, _ in enumerate(group)]
    first = np.argsort(places, kind="stable")[:most]
    return ordered.take(np.sort(first))


def inline(text: str) -> str:
    """Text as harmless HTML: what steers terminals, browsers or reading order is made visible."""
    text = escape(shorten(text.replace("\r\n", "\n"), _MOST_CHARACTERS))
    text = _LINE_ENDS.sub(lambda m: _sign("¶" if m[0].count("\n") > 1 else "↵") + "\n", text)
    return _INVISIBLE.sub(lambda m: _sign(f"U+{ord(m[0]):04X}"), text)


def _sign(name: str) -> str:
    """Drawn by the style sheet, so that it is neither found nor copied as text."""
    return f'<i data-c="{name}"></i>'


def _document(title: str, main: Iterable[str]) -> str:
    hashes = [b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in (STYLE, SCRIPT)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(main)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_plain(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _headline(overlaps: pa.Table) -> list[str]:
    boilerplate, counted = split_boilerplate(overlaps)
    if not len(counted):
        first = f"{NOTHING[0].upper()}{NOTHING[1:]}."
    else:
        documents, *outcomes = count_documents(counted)
        names = zip(outcomes, reversed(DECISIONS), strict=True)
        counts = ", ".join(f"{n:,} {name}" for n, name in names if n)
        first = (
            f"Documents that repeat a benchmark text: <strong>{documents:,}</strong> ({counts}), "
            f"in {_plural(len(counted), 'passage')}."
        )
    if not len(boilerplate):
        return [first]
    passages = _plural(len(boilerplate), "passage")
    documents = _plural(count_documents(boilerplate)[0], "document")
    return [first, f"Apart from these, boilerplate: {passages} in {documents}."]


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _grid(grid: Grid) -> str:
    def cells(tag: str, row: Sequence[str]) -> Iterable[str]:
        for i, (cell, align) in enumerate(zip(row, grid.align, strict=True)):
            name, scope = (tag, "col") if tag == "th" else ("td", "")
            if tag == "td" and i == 0:
                name, scope = "th", "row"
            attributes = f' scope="{scope}"' if scope else ""
            attributes += ' class="right"' if align == ">" else ""
            yield f"<{name}{attributes}>{inline(cell)}</{name}>"

    caption = inline(grid.caption)
    rows = "\n".join(f"<tr>{''.join(cells('td', row))}</tr>" for row in grid.rows)
    note = f'<p class="note">{inline(grid.note)}</p>' if grid.note else ""
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">\n'
        f"<table>\n<caption><span>{caption}</span></caption>\n"
        f"<thead><tr>{''.join(cells('th', grid.header))}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>{note}"
    )


def _choices(shown: pa.Table, scenarios: Sequence[str]) -> dict[str, list[str]]:
    """What the filters offer; cards name a value by its place."""
    choices = {"scenario": scenarios, "source": sorted(shown["source"].unique().to_pylist())}
    choices |= {"rule": list(_RULES), "decision": DECISIONS[::-1]}
    present = {name: set(shown[name].unique().to_pylist()) for name in choices}
    return {name: [v for v in values if v in present[name]] for name, values in choices.items()}


def _passages(
    shown: pa.Table, choices: Mapping[str, Sequence[str]], *, left_out: int, full_table: str
) -> Iterable[str]:
    if not len(shown):
        yield f"<p>None: {NOTHING}.</p>"
        return
    place = inline(full_table)
    if left_out:
        yield (
            f"<p><strong>{len(shown):,} of {len(shown) + left_out:,} passages</strong> are on this "
            f"page, the longest of each scenario and rule first; {left_out:,} are left out. All "
            f"are in {place}.</p>"
        )
    else:
        yield f"<p>All of them are on this page; {place} has the same as a table.</p>"
    yield _glossary(choices["rule"])
    yield _form(choices)
    rows = shown.to_pylist()
    for i, scenario in enumerate(choices["scenario"]):
        own = [row for row in rows if row["scenario"] == scenario]
        own.sort(key=lambda row: choices["rule"].index(row["rule"]))
        count = f"<small>{len(own):,} on this page</small>"
        yield f'<section class="group">\n<h3 id="scenario-{i}">{inline(scenario)} {count}</h3>'
        yield from (_card(row, choices) for row in own)
        yield "</section>"


def _glossary(rules: Sequence[str]) -> str:
    items = "".join(f"<li><b>{rule}</b>: {_RULES[rule]}</li>" for rule in rules)
    return f"<details>\n<summary>What the rules mean</summary>\n<ul>{items}</ul>\n</details>"


def _form(choices: Mapping[str, Sequence[str]]) -> str:
    """Hidden until the script that serves it runs."""
    selects: list[str] = []
    for name, values in choices.items():
        options = [f'<option value="{i}">{_plain(v)}</option>' for i, v in enumerate(values)]
        selects.append(
            f'<label>{name.capitalize()}<select name="{name}"><option value="">all</option>'
            f"{''.join(options)}</select></label>"
        )
    return (
        '<form hidden role="search" aria-label="Filter passages" autocomplete="off">\n'
        + "\n".join(selects)
        + '\n<label class="wide">Any text<input type="search" name="text" '
        'placeholder="words, file, uid, instance"></label>\n'
        '<button type="reset">Show all</button>\n<output aria-live="polite"></output>\n</form>'
    )


def _plain(text: str) -> str:
    """For places that hold no markup."""
    return escape(_INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", shorten(text, 60)))


def _card(row: Mapping[str, Any], choices: Mapping[str, Sequence[str]]) -> str:
    places = " ".join(f'data-{n}="{c.index(row[n])}"' for n, c in choices.items())
    part = "input" if row["part"] == "input" else f"reference {row['reference']}"
    instance = " ".join(filter(None, (row["variant"], row["split"], row["instance"])))
    words = _plural(row["n_words"], "word")
    about_document = [
        ("place", f"{row['file']}:{row['line']}", ""),
        ("origin", row["origin"], ""),
        ("source", row["source"], ""),
        ("bytes", f"[{row['start']:,}, {row['end']:,})", ""),
        ("uid", row["uid"].hex(), "code"),
    ]
    about_benchmark = [
        ("instance", f"{row['scenario']} {instance}", ""),
        ("part", f"{part}, {_role(row)}", ""),
        ("bytes", f"[{row['benchmark_start']:,}, {row['benchmark_end']:,})", ""),
    ]
    context = ("before", "passage", "after")
    benchmark = ("benchmark_before", "benchmark", "benchmark_after")
    return (
        f"<article {places}>\n<h4><span>{inline(instance)}, {part}: {words}</span> "
        f'<span class="tag">{row["rule"]}</span> '
        f'<span class="tag {row["decision"]}">{row["decision"]}</span></h4>\n<div class="pair">\n'
        f"{_side('Document', [row[n] for n in context], about_document)}\n"
        f"{_side('Benchmark', [row[n] for n in benchmark], about_benchmark)}\n</div>\n</article>"
    )


def _role(row: Mapping[str, Any]) -> str:
    if row["part"] == "input":
        return "into the question itself" if row["in_question"] else "only before the question"
    return "a right answer" if row["in_question"] else "not a right answer"


def _side(name: str, texts: Sequence[str], about: Iterable[tuple[str, str, str]]) -> str:
    before, passage, after = texts
    more = "…" if len(before) >= CONTEXT_CHARACTERS else ""
    rest = "…" if len(after) >= CONTEXT_CHARACTERS else ""
    facts = "".join(
        f"<dt>{term}</dt><dd{f' class={c!r}' if c else ''}>{inline(value)}</dd>"
        for term, value, c in about
        if value
    )
    return (
        f'<figure><figcaption>{name}</figcaption>\n<blockquote dir="auto">{more}{inline(before)}'
        f"<mark>{inline(passage)}</mark>{inline(after)}{rest}</blockquote>\n<dl>{facts}</dl></figure>"
    )
