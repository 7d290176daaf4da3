"""The text as it stands, with a paper's abstract behind it where the mixture joins one."""

from pipelines.records import Document


def append_abstract(document: Document, abstract: str) -> Document:
    """A paper with its abstract behind it, set off by a blank line.

    RedPajama's cleaning cuts everything before the first section, the abstract with it;
    Long-Data-Collections' card: "the abstract corresponding to each paper is appended after the
    paper". With no abstract the paper stays as it is.
    """
    if not abstract.strip():
        return document
    return document._replace(text=f"{document.text.rstrip()}\n\n{abstract.strip()}\n")
