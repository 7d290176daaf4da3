"""A chapter and its summary: the BookSum examples of LLaMA-2-7B-32K's fine-tuning."""

from typing import Any

from pipelines.options import Frozen
from pipelines.rendering import Rendered, Writer
from pipelines.templates.values import first_text, long_text


class Summary(Frozen):
    """Where a record keeps text and summary; the defaults are the names of kmfoda/booksum.

    Dots in the names of fields go into objects, numbers into lists (`summary.0.text`).
    """

    text: str = "chapter"
    """The text to summarize; a list of texts is joined line by line."""

    summary: str = "summary_text"
    """The summary; of several, the first."""


def render(record: Any, *, options: Summary) -> Rendered:
    """The published prompt, and the summary as what the model has to produce.

    The chapter may lose its end so that it fits into a sequence.

    Raises:
        BadRecordError: `missing_document` or `no_answer`.
    """
    writer = Writer()
    writer.shrinkable(long_text(record, options.text, missing="missing_document").strip())
    writer.put("\n\nQ: Can you write an appropriate summary of the above paragraphs?\nA:")
    writer.answer(" " + first_text(record, options.summary, missing="no_answer"))
    return writer.rendered()
