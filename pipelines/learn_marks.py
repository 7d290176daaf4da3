"""What records say about which of their answers are learned.

Every tool has names of its own for it. Those of axolotl, LLaMA-Factory, ms-swift, NeMo, OpenAI and
TRL are known here, on turns and on records: `train`, `training`, `loss`, `loss_mask`, `weight` and
`loss_weight` say yes where they are true, `mask` and `masked` say no, `label` and `kto_tag` of
preference data say whether people liked the answer. Where several speak, one no is enough.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.rendering import BadRecordError

YES_MARKS = ("train", "training", "loss", "loss_mask", "weight", "loss_weight")
NO_MARKS = ("mask", "masked")
LIKED_MARKS = ("label", "kto_tag")
MARKS = (*YES_MARKS, *NO_MARKS, *LIKED_MARKS)
TEXT_MARKS = tuple(name for name in MARKS if name not in ("weight", "label"))
"""Of records that are no conversations; there `label` is a class, and `weight` anything."""

_WEIGHTS = ("weight", "loss_weight")
_FLAGS: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}
_USERS = ("user", "human")


def is_learned(turn: Mapping[str, Any], *, is_answer: bool, where: str) -> bool:
    """Whether the marks of a turn let the model learn it.

    Args:
        turn: its fields.
        is_answer: only answers can be learned, so a question that asks for it is refused.
        where: which turn, for the evidence.

    Raises:
        BadRecordError: unknown_weight, unknown_loss_mark.
    """
    learned = True
    for name in MARKS:
        value = turn.get(name)
        if value is None:
            continue
        said = says_learn(name, value, where)
        if said and not is_answer and name in YES_MARKS:
            raise _unknown(name, value, f"{where}only answers can be learned: ")
        learned = learned and said
    return learned


def says_learn(name: str, value: Any, where: str = "") -> bool:
    """What one mark says.

    Raises:
        BadRecordError: unknown_weight, unknown_loss_mark: it is neither true nor false.
    """
    flag = flag_of(value)
    if flag is None:
        raise _unknown(name, value, where)
    return flag != (name in NO_MARKS)


def learned_turns(record: Mapping[str, Any], roles: Sequence[str]) -> list[bool]:
    """Which turns the marks of a record let the model learn: one mark for all, or a list of them.

    Args:
        record: its fields.
        roles: of its turns, `system` and `assistant` among them. A list of marks has an item for
            each turn, for each turn but a system prompt, or for each answer.

    Raises:
        BadRecordError: label_is_false, not_to_learn: nothing of the record is learned;
            unknown_weight, unknown_loss_mark.
    """
    learned = [True] * len(roles)
    for name in MARKS:
        value = record.get(name)
        if value is None or value == []:
            continue
        if isinstance(value, list):
            said = _spread([says_learn(name, item) for item in value], roles)
            if said is None:
                raise _unknown(name, value, f"{len(value)} marks for {len(roles)} turns: ")
            learned = [a and b for a, b in zip(learned, said, strict=True)]
        elif name == "mask" and isinstance(value, str) and value.lower() in _USERS:
            continue  # NeMo names the side that is masked
        elif not says_learn(name, value):
            reason = "label_is_false" if name in LIKED_MARKS else "not_to_learn"
            raise BadRecordError(reason, f"{name}: {value!r}")
    return learned


def refuse_marked(record: Mapping[str, Any], names: Iterable[str]) -> None:
    """Drop a record of texts whose marks say that it is not learned.

    Raises:
        BadRecordError: not_to_learn, unknown_weight, unknown_loss_mark.
    """
    for name in names:
        value = record.get(name)
        if value is not None and not says_learn(name, value):
            raise BadRecordError("not_to_learn", f"{name}: {value!r}")


def _spread(said: Sequence[bool], roles: Sequence[str]) -> list[bool] | None:
    """Marks of some turns as marks of all; None where their number fits nothing."""
    kinds = (roles, [r for r in roles if r != "system"], [r for r in roles if r == "assistant"])
    marked = next((kind for kind in kinds if len(kind) == len(said)), None)
    if marked is None:
        return None
    marks = iter(said)
    return [next(marks) if marked is roles or role in marked else True for role in roles]


def flag_of(value: Any) -> bool | None:
    """What a value says where it is true or false, in any way that records write these."""
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    return _FLAGS.get(value.lower()) if isinstance(value, str) else None


def _unknown(name: str, value: Any, where: str) -> BadRecordError:
    reason = "unknown_weight" if name in _WEIGHTS else "unknown_loss_mark"
    return BadRecordError(reason, f"{where}{name}: {value!r:.60}; see `ignore_fields`")
