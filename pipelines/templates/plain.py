"""The text as it stands, with a paper's abstract behind it where the mixture joins one."""

from pipelines.rendering import Rendered


def append_abstract(paper: Rendered, abstract: str) -> Rendered:
    """A paper with its abstract behind it, set off by a blank line.

    RedPajama's cleaning cuts everything before the first section, the abstract with it;
    Long-Data-Collections' card: "the abstract corresponding to each paper is appended after the
    paper". With no abstract the paper stays as it is. Where it ends with what the model has to
    produce, the abstract is part of that.
    """
    if not abstract.strip():
        return paper
    cut = paper.cut(0, len(paper.text.rstrip()))
    text = f"{cut.text}\n\n{abstract.strip()}\n"
    answers = cut.answers
    if paper.answers and paper.answers[-1][1] == len(paper.text):
        answers = (*paper.answers[:-1], (paper.answers[-1][0], len(text)))
    return cut._replace(text=text, answers=answers)
