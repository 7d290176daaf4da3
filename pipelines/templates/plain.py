"""The text as it stands, with a paper's abstract behind it where the mixture joins one."""

from pipelines.rendering import Rendered


def append_abstract(paper: Rendered, abstract: str) -> Rendered:
    """A paper with its abstract behind it, set off by a blank line.

    RedPajama's cleaning cuts everything before the first section, the abstract with it;
    Long-Data-Collections' card: "the abstract corresponding to each paper is appended after the
    paper". With no abstract the paper stays as it is.
    """
    if not abstract.strip():
        return paper
    return paper._replace(text=f"{paper.text.rstrip()}\n\n{abstract.strip()}\n")
