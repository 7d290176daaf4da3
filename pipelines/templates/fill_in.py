"""Any text as exercises in filling in: UL2's denoisers, or OIG's UL2-Oscar dialogues."""

import random
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipelines.options import Frozen, Real, Whole
from pipelines.rendering import Rendered
from pipelines.templates.denoisers import MOST_UNITS, Ends, denoised, word_ends
from pipelines.templates.oig_dialogue import oig_dialogue

_ROLES = {"user": ("User:", "Assistant:"), "human": ("<human>:", "<bot>:")}
_ONLY_UL2 = ("unit", "mix", "mode_tokens", "piece_units")

KindWeight = Annotated[Real, Field(ge=0)]


class Mix(Frozen):
    """How often each kind of denoiser is used: weights, whatever their sum.

    The default is UL2R's mix of kinds (Tay et al. 2022b), which OpenChatKit has, too.
    `{r: 2, s: 1, x: 4}` gives each of the seven denoisers the same odds.
    """

    r: KindWeight = 25
    """R, [NLU]: short spans, few of them."""

    s: KindWeight = 50
    """S, [S2S]: the rest of the text."""

    x: KindWeight = 25
    """X, [NLG]: long spans, or many."""

    @model_validator(mode="after")
    def _something(self) -> "Mix":
        if self.r + self.s + self.x == 0:
            raise ValueError("at least one weight must be more than 0")
        return self


class FillIn(Frozen):
    """Options: parts of each document are hidden, and the model has to fill them in."""

    form: Literal["oig", "ul2"] = "oig"
    """`oig`: the dialogues of OIG's UL2-Oscar; `ul2`: UL2's seven denoisers."""

    roles: Literal["user", "human"] = "user"
    """Of `oig`: `User:` and `Assistant:`, as the script writes, or `<human>:` and `<bot>:`, as in
    the published file."""

    unit: Literal["words", "tokens"] = "words"
    """Of `ul2`: what is counted and hidden."""

    mix: Mix = Mix()
    """Of `ul2`: how often each kind of denoiser is used."""

    mode_tokens: bool = True
    """Of `ul2`: whether exercises begin with [NLU], [S2S] or [NLG]."""

    piece_units: Annotated[Whole, Field(ge=16, le=MOST_UNITS)] = 512
    """Of `ul2`: longer documents become several exercises of at most so many words or tokens."""

    @model_validator(mode="after")
    def _of_this_form(self) -> "FillIn":
        others = ("roles",) if self.form == "ul2" else _ONLY_UL2
        if wrong := [name for name in others if name in self.model_fields_set]:
            raise ValueError(f"`{wrong[0]}` is no option of `form: {self.form}`; leave it out")
        return self


def fill_in(
    text: str, *, options: FillIn, rng: random.Random, ends: Ends | None = None
) -> Rendered:
    """A document with parts of it hidden, and what is hidden as the answers.

    Args:
        text: of the document.
        options: which form, and how.
        rng: every random choice; the same numbers give the same bytes.
        ends: where the tokens of a text end, in characters; needed for `unit: tokens`.

    Raises:
        BadRecordError: `too_short_to_fill`: less than two words or tokens; `sentinel_in_text`:
            what marks a hidden part is in the text itself.
    """
    if options.form == "oig":
        return oig_dialogue(text, roles=_ROLES[options.roles], rng=rng)
    if options.unit == "tokens" and ends is None:
        raise ValueError("`unit: tokens` needs `ends`")
    return denoised(
        text,
        ends=ends if options.unit == "tokens" and ends else word_ends,
        weights={"r": options.mix.r, "s": options.mix.s, "x": options.mix.x},
        piece=options.piece_units,
        mode_tokens=options.mode_tokens,
        rng=rng,
    )
