"""Which documents to drop before they cost anything, and why."""

from pipelines.mixture import Filters

_SAMPLE_BITS = 64


def drop_reason(text: str, n_bytes: int, filters: Filters) -> tuple[str, str] | None:
    """(reason, evidence) if the text is empty or certainly too short, else None.

    `min_tokens` is decided exactly after tokenization; here it only saves the work for texts
    that cannot reach it: a token covers at least one byte, but for one that a dummy prefix adds.

    Args:
        text: the document.
        n_bytes: its length in UTF-8.
        filters: the floors that hold for its source.
    """
    if not text or text.isspace():
        return "empty_text", f"{len(text)} characters"
    if filters.min_words and (words := _words_up_to(text, filters.min_words)) < filters.min_words:
        return "too_few_words", f"{words} words"
    if n_bytes + 1 < filters.min_tokens:
        return "too_few_tokens", f"{n_bytes} bytes"
    return None


def _words_up_to(text: str, limit: int) -> int:
    """Whitespace-separated words, counted only as far as `limit`."""
    words = text.split(None, limit)
    return min(len(words), limit)


def in_sample(uid: bytes, share: float) -> bool:
    """Whether a document belongs to the sample of its source, by its id alone."""
    return int.from_bytes(uid[:8], "little") < share * (1 << _SAMPLE_BITS)
