"""Names of fields: what they say of a record, so that nothing which matters is passed over.

A field is read by the schema, or known to be harmless (ids, dates, scores, …), or it is none of
these and the plan lists it. Three kinds are never passed over: what is not text, what belongs to
the question or the answer, and what speaks of loss or training. A record with such a field is
dropped with a reason unless its schema reads the field or the mixture names it in `ignore_fields`.
"""

import re
from collections.abc import Mapping
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

TEXT_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
"""Those of them that make a record of texts more than a text; web pages have an `image_url`."""

CONTENT = _names("""
    context contexts passage passages document documents article background knowledge evidence
    choices options candidates hint hints history examples demonstrations table code attachments
    files objects citations annotations system system_prompt system_message instruction input
    tools functions tool_calls function_call tool_plan reasoning reasoning_content
    reasoning_details thinking thinking_blocks thought thoughts rationale rationales
    chain_of_thought cot complex_cot scratchpad explanation analysis refusal chosen
""")
"""What belongs to a question or to its answer."""

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
    detoxify_moderation detoxify labels review_count review_result deleted synthetic emojis
    status tree_state meta metadata meta_data extra extra_info info rejected rejected_response
    rejected_messages
""")
"""Names that no schema reads and whose fields nobody misses."""

_LOSS_WORDS = _names("""
    loss losses noloss lossmask train trains trained training trainable untrained notrain learn
    learns learned learnt learnable unlearn mask masks masked masking unmask unmasked supervise
    supervised weight weights kto
""")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def speaks_of_loss(name: str) -> bool:
    """Whether a name says something about what is learned: `no_loss`, `isTrained`, `loss_scale`."""
    return any(word.lower() in _LOSS_WORDS for word in _WORD.findall(name))


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, or no text, at any depth of lists and objects."""
    if value is None:
        return True
    if isinstance(value, str | bytes):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return isinstance(value, list | tuple) and all(map(is_empty, value))


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
        if reason := MEDIA.get(name.lower()):
            raise BadRecordError(reason, f"{where}field '{name}'")
        if speaks_of_loss(name):
            said = f"{where}field '{name}': {value!r:.60}"
            raise BadRecordError("unknown_loss_field", f"{said}; see `ignore_fields`")
        if name.lower() in CONTENT:
            said = f"{where}field '{name}' belongs to the question or the answer"
            raise BadRecordError("unread_field", f"{said}, and the schema does not read it")


def without(fields: Mapping[str, Any], names: frozenset[str]) -> Mapping[str, Any]:
    """The fields but for those of these names."""
    if names.isdisjoint(fields):
        return fields
    return {name: value for name, value in fields.items() if name not in names}
