"""Names of fields: what they say of a record, so that nothing which matters is passed over.

A field is read by the schema, or known to be harmless (ids, dates, scores, …), or it is none of
these and the plan lists it. Three kinds are never passed over: what is not text, what belongs to
the question or the answer, and what speaks of loss or training. A record with such a field is
dropped with a reason unless its schema reads the field or the mixture names it in `ignore_fields`.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipelines.rendering import BadRecordError


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


MEDIA: Mapping[str, str] = {
    **dict.fromkeys(
        _names("image images image_url image_urls image_path img picture pixel_values"),
        "has_images",
    ),
    **dict.fromkeys(("audio", "audios", "audio_url", "audio_path", "input_audio"), "has_audio"),
    **dict.fromkeys(("video", "videos", "video_url", "video_path", "frames"), "has_video"),
}  # fmt: skip
"""What is not text, and the reason to drop a record that has it."""

_MEDIA_WORDS: Mapping[str, str] = {
    **dict.fromkeys(
        _names("image images img imgs picture pictures photo photos screenshot screenshots"),
        "has_images",
    ),
    **dict.fromkeys(_names("audio audios wav waveform"), "has_audio"),
    **dict.fromkeys(_names("video videos"), "has_video"),
}  # fmt: skip
"""The same for words of longer names: `image_base64`."""

TEXT_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
"""Those of them that make a record of texts more than a text; web pages have an `image_url`."""

CONTENT = _names("""
    context contexts passage passages document documents article background knowledge evidence
    choices options candidates hint hints history examples demonstrations table code attachments
    files objects citations annotations system system_prompt system_message instruction input
    tools functions tool_calls function_call tool_plan reasoning reasoning_content
    reasoning_details thinking thinking_blocks thought thoughts rationale rationales
    chain_of_thought cot complex_cot scratchpad explanation analysis refusal chosen
    paragraph paragraphs story premise hypothesis inputs
""")
"""What belongs to a question or to its answer."""

_CONTENT_WORDS = _names("""
    context contexts ctx ctxs passage passages paragraph paragraphs document documents evidence
    knowledge choices options hint hints examples demonstrations tools functions reasoning think
    thinking thought thoughts rationale rationales cot scratchpad
""")
"""The same for words of longer names: `reasoning_trace`."""

HARMLESS = _names("""
    id ids idx index uid uuid guid hash row_id doc_id sample_id example_id prompt_id message_id
    message_tree_id parent_id conversation_id conversation_hash user_id task_id question_id _id
    __index_level_0__ model models model_name model_id engine generator temperature top_p source
    sources origin dataset dataset_name data_source subset config split file filename path url
    urls link links domain license author username title lang language languages country state
    date time datetime timestamp timestamps created created_at created_date updated updated_at
    create_time update_time year version category categories tag tags task tasks task_name
    task_type type kind subject difficulty level quality score scores rating ratings rank reward
    rewards score_chosen score_rejected average_rating perplexity similarity n_tokens num_tokens
    token_count tokens_count length lengths word_count n_words num_words n_turns num_turns
    turn_count size bytes toxic toxicity redacted moderation openai_moderation
    detoxify_moderation detoxify review_count review_result deleted synthetic emojis
    status tree_state meta metadata meta_data extra extra_info info rejected rejected_response
    rejected_messages
""")
"""Names that no schema reads and whose fields nobody misses."""

_ABOUT = _names("""
    id ids idx index count type kind mode effort budget level score scores quality length size
    width height duration format language lang title titles caption name names model source used
    tokens hash enabled
""")
"""Last words of names that say something about a content: `document_id`, `reasoning_effort`."""

_LOSS_WORDS = _names("""
    loss losses noloss lossmask train trains trained training trainable untrained notrain learn
    learns learned learnt learnable unlearn mask masks masked masking unmask unmasked supervise
    supervised weight weights kto grad gradient gradients nograd backprop
""")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name))


def speaks_of_loss(name: str) -> bool:
    """Whether a name says something about what is learned: `no_loss`, `isTrained`, `loss_scale`."""
    return not _LOSS_WORDS.isdisjoint(_words(name))


def media_of(name: str) -> str | None:
    """The reason to drop a record with a field of this name, if it is not text."""
    if reason := MEDIA.get(name.lower()):
        return reason
    words = _words(name)
    if not words or words[-1] in _ABOUT:
        return None
    return next((_MEDIA_WORDS[word] for word in words if word in _MEDIA_WORDS), None)


def is_content(name: str) -> bool:
    """Whether a field of this name belongs to a question or to its answer."""
    words = _words(name)
    if name.lower() in CONTENT or not words:
        return name.lower() in CONTENT
    return words[-1] not in _ABOUT and not _CONTENT_WORDS.isdisjoint(words)


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, or no text, at any depth of lists and objects."""
    if value is None:
        return True
    if isinstance(value, str | bytes):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return isinstance(value, list | tuple) and all(map(is_empty, value))


def _holds_text(value: Any) -> bool:
    """Whether there is a text or are bytes in a value; counts and flags have none."""
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str | bytes) and value.strip() not in _NOTHING


_NOTHING = ("", "[]", "{}", "null", b"", b"[]", b"{}", b"null")
"""Also what tables of texts write where another column would be empty."""


def refuse_unread(fields: Mapping[str, Any], read: frozenset[str], where: str = "") -> None:
    """Drop a record with a field that may not be passed over.

    Args:
        fields: of a record or of one of its turns.
        read: names that are read, or that the mixture declares harmless.
        where: what the fields belong to, for the evidence: `turn 2: `.

    Raises:
        BadRecordError: has_images, has_audio, has_video, unknown_loss_field, unread_field.
    """
    for name, value in fields.items():
        if name in read or name in HARMLESS or is_empty(value):
            continue
        if isinstance(value, str | bytes) and value.strip() in _NOTHING:
            continue
        lower = name.lower()
        tells = lower in MEDIA or lower in CONTENT or _holds_text(value)
        if tells and (reason := media_of(name)):
            raise BadRecordError(reason, f"{where}field '{name}'")
        if speaks_of_loss(name):
            said = f"{where}field '{name}': {value!r:.60}"
            raise BadRecordError("unknown_loss_field", f"{said}; see `ignore_fields`")
        if tells and is_content(name):
            said = f"{where}field '{name}' belongs to the question or the answer"
            raise BadRecordError("unread_field", f"{said}, and the schema does not read it")


def without(fields: Mapping[str, Any], names: frozenset[str]) -> Mapping[str, Any]:
    """The fields but for those of these names."""
    if names.isdisjoint(fields):
        return fields
    return {name: value for name, value in fields.items() if name not in names}
