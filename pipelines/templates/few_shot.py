"""Examples of a task as they stand behind each other in one context.

    Definition: …           once, where the task has one

    Input: …                the examples that show how it is done, then as many others as fit
    Output: …

Every part ends with a blank line, so the parts of a context are simply joined. Examples are
tokenized as what stands behind other text; only the first of a context without definition does not.
"""

from collections.abc import Sequence

from pipelines.rendering import BadRecordError, Rendered, Writer, is_blank

_END = "\n\n"


def render_definition(definition: str) -> Rendered:
    """What the task asks for, before its examples."""
    return Rendered(f"Definition: {definition.strip()}{_END}")


def render_example(texts: Sequence[str], labels: Sequence[str]) -> Rendered:
    """One example: its inputs and, behind them on a line of its own, the answer.

    Args:
        texts: the inputs, and last the answer.
        labels: what stands before each text; empty for tasks whose inputs are whole prompts.

    Raises:
        BadRecordError: `no_answer`.
    """
    *inputs, answer = texts
    if is_blank(answer):
        raise BadRecordError("no_answer", repr(answer))
    *names, last = labels or [""] * len(texts)
    writer = Writer()
    for name, text in zip(names, inputs, strict=True):
        writer.put(f"{name}{text}\n")
    writer.put(last.rstrip())
    writer.answer(last[len(last.rstrip()) :] + answer)
    writer.put(_END)
    return writer.rendered()._replace(inside=True)


def render_prompt(texts: Sequence[str]) -> Rendered:
    """Inputs and answer in lines, as a document of its own."""
    *inputs, answer = texts
    prompt = "".join(f"{text}\n" for text in inputs)
    return Rendered(prompt + answer, ((len(prompt), len(prompt + answer)),) if answer else ())
