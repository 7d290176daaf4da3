"""Answers, control tokens and what may be shortened: exact to the token, for any text."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from conftest import prose
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from vocabularies import added, llama_json

from pipelines.bos_eos import Named
from pipelines.chat_options import Chat
from pipelines.conversations import Conversation, Turn
from pipelines.encode import Encoded, encode_documents, has_parts
from pipelines.mixture import TokenizerSpec
from pipelines.references import TOKENIZERS
from pipelines.rendering import BOS, EOS, Rendered, Writer
from pipelines.templates.chat import chat_renderer
from pipelines.tokenizer import Tokenizer, load_tokenizer
from pipelines.tokenizer_file import TokenizerFile, fetch_tokenizer, reference

SPECIALS = ["<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LOOK_ALIKE = [*SPECIALS, "</s>", "[INST]", "<unk>"]
TEXT = st.lists(
    st.one_of(
        st.text(st.sampled_from(list("ab  \n\t</>|▁éЖ漢👍\u200d\u2028\x00.'1")), max_size=12),
        st.sampled_from([*LOOK_ALIKE, "the time could ", " see\n\n", "people"]),
    ),
    max_size=3,
).map("".join)
KINDS = st.sampled_from(["put", "answer", "control", "loss control"])
PARTS = st.lists(st.tuples(KINDS, TEXT, st.integers(0, 3)), max_size=7)

Part = tuple[str, str, int]
Items = list[tuple[str, str]]
"""What a document is made of: stretches of text, and control tokens by name."""

quick = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with control tokens as chat models have them."""
    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    rng = random.Random(2)
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prose(rng, 200) for _ in range(50)), trainer)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@cache
def load(path: Path, *, bos: bool = True, eos: bool = True) -> Tokenizer:
    spec = TokenizerSpec.model_validate({"path": str(path), "bos": bos, "eos": eos})
    file = fetch_tokenizer(spec)
    return load_tokenizer(file, proved="segment cache" if file.is_sentencepiece else "gigatoken")


@pytest.fixture(params=["SentencePiece", "byte level"])
def path(request: pytest.FixtureRequest, tokenizer_model: Path, byte_level: Path) -> Path:
    return tokenizer_model if request.param == "SentencePiece" else byte_level


def names_of(tokenizer: Tokenizer) -> dict[str, str]:
    """Control tokens that a template may ask for, and how the vocabulary spells them."""
    if tokenizer.file.is_sentencepiece:
        return {BOS: "<s>", EOS: "</s>", "<s>": "<s>", "</s>": "</s>"}
    chat = {name: name for name in ("<|im_start|>", "<|im_end|>")}
    return {BOS: "<s>", EOS: "<|endoftext|>", **chat}


def rendered(parts: list[Part], tokenizer: Tokenizer, *, framed: bool) -> Rendered:
    writer, names = Writer(), list(names_of(tokenizer))
    for kind, text, number in parts:
        if kind in ("put", "answer"):
            (writer.put if kind == "put" else writer.answer)(text)
        else:
            writer.control(names[number], loss=kind == "loss control")
    return writer.rendered(framed=framed)


def expected(
    parts: list[Part], tokenizer: Tokenizer, *, framed: bool, answers: bool = False
) -> Items:
    """What should be there; of `answers` only what the model has to produce.

    SentencePiece puts a space before text that begins a document, and writes ▁ for spaces.
    """
    names, file = names_of(tokenizer), tokenizer.file
    wanted = {BOS: file.bos, EOS: file.eos}
    ends_with_answer = False
    if texts := [(kind, text) for kind, text, _ in parts if kind in ("put", "answer") and text]:
        ends_with_answer = texts[-1][0] == "answer"
    frame = [("control", "", 0)], [("loss control" if ends_with_answer else "control", "", 1)]
    whole = [*([] if framed else frame[0]), *parts, *([] if framed else frame[1])]
    found: Items = []
    begins = True
    for kind, text, number in whole:
        if kind in ("put", "answer"):
            space = " " if begins and text and file.is_sentencepiece else ""
            shown = text.replace("▁", " ") if file.is_sentencepiece else text
            begins = begins and not text
            item = ("text", space + shown)
        else:
            name = list(names)[number]
            begins = names[name] == names[BOS]
            item = ("control", names[name]) if wanted.get(name, True) else ("text", "")
        if not answers or kind in ("answer", "loss control"):
            found.append(item)
    return joined(found)


def joined(items: Items) -> Items:
    """Neighbouring texts as one, empty ones left out."""
    found: Items = []
    for kind, shown in items:
        if kind == "text" and found and found[-1][0] == "text":
            found[-1] = (kind, found[-1][1] + shown)
        elif shown:
            found.append((kind, shown))
    return found


def items_of(ids: list[int], tokenizer: Tokenizer) -> Items:
    """Ids as what they stand for, by the vocabulary's own table alone."""
    controls = {tokenizer.reference.special_id(name): name for name in names_of(tokenizer).values()}
    found: Items = []
    for control, group in groupby(ids, controls.get):
        run = list(group)
        found += (
            [("control", control)] * len(run) if control else [("text", text_of(run, tokenizer))]
        )
    return found


def text_of(ids: list[int], tokenizer: Tokenizer) -> str:
    if not tokenizer.file.is_sentencepiece:
        return tokenizer.reference.decode(ids)
    processor = tokenizer.reference.processor
    pieces = [processor.id_to_piece(i) for i in ids]
    content = b"".join(
        bytes([int(piece[3:5], 16)]) if processor.is_byte(i) else piece.encode()
        for i, piece in zip(ids, pieces, strict=True)
    )
    return content.decode().replace("▁", " ")


def encode(content: Rendered, tokenizer: Tokenizer, most: int | None = None) -> Encoded:
    (encoded,) = encode_documents([content], tokenizer, max_tokens=most)
    assert encoded
    return encoded


def loss_ids(encoded: Encoded) -> list[int]:
    silent = {i for a, b in encoded.no_loss for i in range(a, b)}
    return [t for i, t in enumerate(encoded.ids.tolist()) if i not in silent]


@quick
@given(parts=PARTS, framed=st.booleans(), bos=st.booleans(), eos=st.booleans())
def test_the_tokens_with_loss_are_the_answers_and_all_tokens_are_the_document(
    path: Path, parts: list[Part], framed: bool, bos: bool, eos: bool
) -> None:
    tokenizer = load(path, bos=bos, eos=eos)
    if framed:
        parts = [("put", "x", 0), *parts]
    encoded = encode(rendered(parts, tokenizer, framed=framed), tokenizer)
    assert items_of(encoded.ids.tolist(), tokenizer) == expected(parts, tokenizer, framed=framed)
    assert items_of(loss_ids(encoded), tokenizer) == expected(
        parts, tokenizer, framed=framed, answers=True
    )
    assert encoded.n_frame == (0 if framed else bos + eos)
    assert str(encoded.ids.dtype) == tokenizer.token_type
    assert all(a < b for a, b in encoded.no_loss)
    assert all(a[1] < b[0] for a, b in pairwise(encoded.no_loss)), "touching spans are one"
    assert not encoded.no_loss or encoded.no_loss[-1][1] <= len(encoded.ids)


@quick
@given(text=TEXT)
def test_a_document_without_parts_is_what_the_tokenizer_makes_of_it(path: Path, text: str) -> None:
    tokenizer = load(path)
    assert not has_parts(Rendered(text))
    ids, _ = tokenizer.encode([text])
    encoded = encode(Rendered(text), tokenizer)
    assert encoded.ids.tolist() == ids.tolist()
    assert encoded.no_loss == ((0, len(ids)),)


def test_text_that_looks_like_a_control_token_never_becomes_one(path: Path) -> None:
    tokenizer = load(path)
    parts = [(kind, text, 0) for text in LOOK_ALIKE for kind in ("put", "answer")]
    encoded = encode(rendered(parts, tokenizer, framed=True), tokenizer)
    assert [kind for kind, _ in items_of(encoded.ids.tolist(), tokenizer)] == ["text"]
    special = tokenizer.reference.special_id
    assert {special(name) for name in tokenizer.reference.specials}.isdisjoint(encoded.ids.tolist())


def test_a_control_token_that_the_vocabulary_lacks_is_named(path: Path) -> None:
    writer = Writer()
    writer.put("a")
    writer.control("<|nowhere|>")
    with pytest.raises(ValueError, match=r"no special token '<\|nowhere\|>'"):
        encode_documents([writer.rendered()], load(path), max_tokens=None)


@quick
@given(
    texts=st.tuples(TEXT, TEXT, TEXT), framed=st.booleans(), room=st.integers(1, 40),
    control=st.booleans(),
)  # fmt: skip
def test_only_what_may_be_shortened_is_and_it_fits_exactly(
    path: Path, texts: tuple[str, str, str], framed: bool, room: int, control: bool
) -> None:
    tokenizer = load(path)
    before, long, answer = texts[0], texts[1] + "the people see", texts[2] + "."
    writer = Writer()
    writer.put(before)
    writer.shrinkable(long)
    if control:
        writer.control(EOS)
    writer.answer(answer)
    content = writer.rendered(framed=framed)
    whole = encode(content, tokenizer)
    (cut,) = encode_documents([content], tokenizer, max_tokens=room)
    lone = tokenizer.reference.encode
    at = (not framed) + len(lone([before])[0] if before else ())
    n_long = len(lone([long], inside=bool(before))[0])
    excess = max(len(whole.ids) - room, 0)
    if n_long <= excess:
        assert cut is None
        return
    assert cut
    keep = [i for i in range(len(whole.ids)) if not at + n_long - excess <= i < at + n_long]
    assert cut.ids.tolist() == whole.ids[keep].tolist()
    assert loss_ids(cut) == loss_ids(whole)
    assert (len(cut.ids), cut.n_shortened) == (min(room, len(whole.ids)), excess)


@quick
@given(parts=PARTS, room=st.integers(1, 30))
def test_what_may_not_be_shortened_fits_or_is_refused(
    path: Path, parts: list[Part], room: int
) -> None:
    tokenizer = load(path)
    content = rendered([("put", "x", 0), *parts], tokenizer, framed=False)
    whole = encode(content, tokenizer)
    (limited,) = encode_documents([content], tokenizer, max_tokens=room)
    if len(whole.ids) > room:
        assert limited is None
    else:
        assert limited
        assert (limited.ids.tolist(), limited.n_shortened) == (whole.ids.tolist(), 0)


@quick
@given(documents=st.lists(PARTS, max_size=4))
def test_documents_do_not_depend_on_what_is_encoded_with_them(
    path: Path, documents: list[list[Part]]
) -> None:
    tokenizer = load(path)
    contents = [rendered(parts, tokenizer, framed=False) for parts in documents]
    together = encode_documents(contents, tokenizer, max_tokens=None)
    assert len(together) == len(contents)
    for content, found in zip(contents, together, strict=True):
        alone = encode(content, tokenizer)
        assert found
        assert (found.ids.tolist(), found.no_loss) == (alone.ids.tolist(), alone.no_loss)


# --- behind control tokens --------------------------------------------------------------------

CONTROLS = ("<s>", "</s>", "<|user|>", "<|eats|>", "<|before|>")
STRETCH = st.lists(
    st.sampled_from([*"ab \n\t▁漢", "  ", "\u00a0", "\x1c", "<think>", "the time", " see"]),
    max_size=5,
).map("".join)


@cache
def chat_vocabulary(prefix: str) -> Tokenizer:
    """Control tokens of a chat, of which some take white space along, and <think> for text."""
    special = [added("<|user|>", special=True), added("<|eats|>", special=True, rstrip=True),
               added("<|before|>", special=True, lstrip=True)]  # fmt: skip
    made = llama_json(*special, added("<think>"), prefix=prefix)
    file = TokenizerFile(made.to_str().encode(), TOKENIZERS, bos=True, eos=True)
    truth = reference(file)
    bos, eos = (Named(truth.token_id(text), text, "the test") for text in ("<s>", "</s>"))
    anywhere = truth.begins_anywhere
    return load_tokenizer(replace(file, bos_token=bos, eos_token=eos, begins_anywhere=anywhere))


@pytest.mark.parametrize("prefix", ["prepend", "always", "first", "never"])
@quick
@given(parts=st.lists(st.tuples(STRETCH, st.sampled_from(CONTROLS)), max_size=5), last=STRETCH)
def test_text_behind_control_tokens_is_encoded_as_the_library_does(
    prefix: str, parts: list[tuple[str, str]], last: str
) -> None:
    """But behind BOS, where text begins whatever the library would do."""
    tokenizer = chat_vocabulary(prefix)
    library = Library.from_str(tokenizer.file.content.decode())
    writer = Writer()
    for text, control in parts:
        writer.put(text)
        writer.control(control)
    writer.put(last)
    texts = "".join(text + control for text, control in parts) + last
    assume(texts)
    want: list[int] = []
    bos = tokenizer.bos_id
    for number, text in enumerate(re.split("<s>", texts) if prefix == "first" else [texts]):
        want += [bos] * bool(number) + library.encode(text, add_special_tokens=False).ids
    assert encode(writer.rendered(framed=True), tokenizer).ids.tolist() == want


@pytest.mark.parametrize("kind", ["SentencePiece", "prepend", "first"])
def test_a_jinja_template_of_llama_2_gives_the_ids_of_the_built_in_one(
    kind: str, tokenizer_model: Path
) -> None:
    tokenizer = load(tokenizer_model) if kind == "SentencePiece" else chat_vocabulary(kind)
    jinja = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + "
        "' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    turns = [Turn("user", "the time?"), Turn("assistant", "people see")] * 2
    made = [
        chat_renderer(options, special=tokenizer.reference.specials, bos="<s>", eos="</s>")(
            Conversation(None, tuple(turns))
        )
        for options in (Chat(template="llama2"), Chat(jinja=jinja))
    ]
    built_in, written = (encode(content, tokenizer) for content in made)
    assert written.ids.tolist() == built_in.ids.tolist()
    assert tokenizer.reference.spelling(int(built_in.ids[1])).startswith("▁")
    assert loss_ids(written) == loss_ids(built_in)


@pytest.mark.parametrize("legacy", [True, False, None])
def test_sentencepiece_begins_behind_every_control_where_the_model_says_legacy(
    legacy: bool | None, tokenizer_model: Path, tmp_path: Path
) -> None:
    """As transformers' tokenizer of such a model does."""
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    config = {"bos_token": "<s>", "eos_token": "</s>"} | (
        {} if legacy is None else {"legacy": legacy}
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load(tmp_path)
    writer = Writer()
    for control, text in ((BOS, "the"), ("</s>", "the"), (EOS, "the"), ("<s>", "the")):
        writer.control(control)
        writer.put(text)
    begun, inside = (tokenizer.reference.encode(["the"], inside=i)[0].tolist() for i in (0, 1))
    assert begun != inside
    behind_eos = begun if legacy else inside
    want = [1, *begun, 2, *behind_eos, 2, *behind_eos, 1, *begun]
    assert encode(writer.rendered(framed=True), tokenizer).ids.tolist() == want
