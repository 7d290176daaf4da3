"""What the packing policies promise, for any lengths."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.packing import Packing, pack_documents, pad_documents, stream_documents

POLICIES = [pack_documents, pad_documents, stream_documents]

seq_lens = st.integers(1, 48)
any_lengths = st.lists(st.integers(1, 120), max_size=60)
# A floor under the lengths is where best fit decreasing wastes room, so both packers run.
floored_lengths = st.lists(st.integers(5, 24), min_size=1, max_size=80)
lengths_lists = any_lengths | floored_lengths


def naive_best_fit_decreasing(lengths: list[int], seq_len: int) -> int:
    """Rows used by the textbook packer: the longest piece into the tightest row that holds it."""
    full = sum(length // seq_len for length in lengths)
    rooms: list[int] = []
    for piece in sorted((length % seq_len for length in lengths), reverse=True):
        if not piece:
            continue
        holding = [(room, row) for row, room in enumerate(rooms) if room >= piece]
        if holding:
            rooms[min(holding)[1]] -= piece
        else:
            rooms.append(seq_len - piece)
    return full + len(rooms)


def columns(packing: Packing) -> list[list[int]]:
    arrays = [packing.row, packing.start, packing.document, packing.offset, packing.length]
    return [array.tolist() for array in arrays]


def placed_tokens(packing: Packing) -> list[tuple[int, int]]:
    """(document, token) of every placed token, sorted."""
    segments = zip(packing.document, packing.offset, packing.length, strict=True)
    return sorted((int(d), t) for d, o, n in segments for t in range(int(o), int(o + n)))


def real_tokens(packing: Packing) -> list[int]:
    """Real tokens of each row."""
    weights = packing.length
    return np.bincount(packing.row, weights, packing.n_rows).astype(int).tolist()


def web_like(seed: int, documents: int, *, keep_long: bool) -> np.ndarray:
    """Web texts of at least 2,048 tokens; `keep_long` adds some papers and a few books."""
    rng = np.random.default_rng(seed)
    web = np.maximum(2048, rng.lognormal(8.13, 0.65, documents))
    papers = rng.lognormal(9.48, 0.8, documents // 8 if keep_long else 0)
    books = rng.lognormal(11.42, 0.8, documents // 60 if keep_long else 0)
    return rng.permutation(np.concatenate([web, papers, books]).astype(np.int64))


def padding(packing: Packing, seq_len: int) -> float:
    return 1 - packing.length.sum() / (packing.n_rows * seq_len)


@pytest.mark.parametrize("policy", [pack_documents, stream_documents])
@given(lengths=lengths_lists, seq_len=seq_lens)
def test_every_token_of_every_document_is_placed_exactly_once(policy, lengths, seq_len):
    packing = policy(lengths, seq_len=seq_len)
    assert placed_tokens(packing) == [(d, t) for d, n in enumerate(lengths) for t in range(n)]


@pytest.mark.parametrize("policy", POLICIES)
@given(lengths=lengths_lists, seq_len=seq_lens)
def test_segments_follow_one_another_from_the_start_of_each_row_and_stay_inside(
    policy, lengths, seq_len
):
    packing = policy(lengths, seq_len=seq_len)
    position = dict.fromkeys(range(packing.n_rows), 0)
    for row, start, length in zip(packing.row, packing.start, packing.length, strict=True):
        assert start == position[row]
        assert length >= 1
        position[row] += length
    assert all(1 <= tokens <= seq_len for tokens in position.values())


@pytest.mark.parametrize("policy", POLICIES)
@given(lengths=lengths_lists, seq_len=seq_lens)
def test_segments_are_sorted_and_stand_in_input_order_inside_a_row(policy, lengths, seq_len):
    packing = policy(lengths, seq_len=seq_len)
    rows, starts, documents, offsets, _ = columns(packing)
    by_position = list(zip(rows, starts, strict=True))
    by_document = list(zip(rows, documents, offsets, strict=True))
    assert by_position == sorted(by_position)
    assert by_document == sorted(by_document)


@given(lengths=lengths_lists, seq_len=seq_lens)
def test_packing_cuts_only_at_multiples_of_a_row_and_full_pieces_are_alone(lengths, seq_len):
    packing = pack_documents(lengths, seq_len=seq_len)
    left = np.array(lengths, np.int64)[packing.document] - packing.offset
    assert (packing.offset % seq_len == 0).all()
    assert (packing.length == np.minimum(left, seq_len)).all()


@given(lengths=lengths_lists, seq_len=seq_lens)
def test_packing_never_needs_more_rows_than_a_naive_best_fit_decreasing(lengths, seq_len):
    packing = pack_documents(lengths, seq_len=seq_len)
    volume = -(-sum(lengths) // seq_len)
    assert volume <= packing.n_rows <= naive_best_fit_decreasing(lengths, seq_len)


@given(lengths=lengths_lists, seq_len=seq_lens, seed=st.integers(0, 9))
def test_the_number_of_rows_does_not_depend_on_the_input_order(lengths, seq_len, seed):
    shuffled = np.random.default_rng(seed).permutation(np.array(lengths, np.int64))
    given_order = pack_documents(lengths, seq_len=seq_len)
    assert pack_documents(shuffled, seq_len=seq_len).n_rows == given_order.n_rows


@given(lengths=lengths_lists, seq_len=seq_lens)
def test_rows_are_numbered_by_their_first_segment(lengths, seq_len):
    packing = pack_documents(lengths, seq_len=seq_len)
    first = packing.start == 0
    firsts = list(zip(packing.document[first], packing.offset[first], strict=True))
    assert firsts == sorted(firsts)
    assert packing.row[first].tolist() == list(range(packing.n_rows))


@given(seq_len=st.integers(2, 64), data=st.data())
@settings(max_examples=50)
def test_pieces_that_fill_rows_in_pairs_are_packed_without_padding(seq_len, data):
    cuts = data.draw(st.lists(st.integers(1, seq_len - 1), max_size=30))
    lengths = [length for cut in cuts for length in (cut, seq_len - cut)]
    assert pack_documents(lengths, seq_len=seq_len).n_rows == len(cuts)


@pytest.mark.parametrize(
    ("seq_len", "lengths", "best_fit_decreasing", "rows"),
    [
        pytest.param(10, [4, 4, 3, 3, 3, 3], 3, 2, id="exact closing wins"),
        pytest.param(18, [9, 7, 6, 6, 4], 2, 2, id="the tightest row wins"),
        pytest.param(18, [10, 10, 9, 5, 5, 4, 4, 4], 4, 3, id="one 9 is not a pair of 9"),
        pytest.param(18, [4, 5, 5, 6, 7, 7, 9, 10], 4, 3, id="the longest goes first"),
        pytest.param(
            41,
            [36, 36, 36, 35, 32, 30, 30, 27, 24, 22, 20, 19, 18, 17, 14, 13, 13, 12, 6, 5, 3],
            12,
            12,
            id="best fit decreasing wins",
        ),
    ],
)
def test_the_better_of_best_fit_decreasing_and_exact_closing_is_kept(
    seq_len, lengths, best_fit_decreasing, rows
):
    assert naive_best_fit_decreasing(lengths, seq_len) == best_fit_decreasing
    assert pack_documents(lengths, seq_len=seq_len).n_rows == rows


@pytest.mark.parametrize("keep_long", [False, True], ids=["web", "web, papers and books"])
def test_a_large_group_with_a_length_floor_pads_under_0_03_percent_in_any_order(keep_long):
    lengths = web_like(0, 30_000, keep_long=keep_long)
    packing = pack_documents(lengths, seq_len=32_768)
    assert padding(packing, 32_768) < 0.0003
    assert max(real_tokens(packing)) <= 32_768
    assert np.bincount(packing.document, packing.length).tolist() == lengths.tolist()
    assert pack_documents(np.sort(lengths), seq_len=32_768).n_rows == packing.n_rows


@given(lengths=lengths_lists, seq_len=seq_lens)
def test_padding_gives_each_document_a_row_with_its_first_tokens(lengths, seq_len):
    packing = pad_documents(lengths, seq_len=seq_len)
    n, zeros = len(lengths), [0] * len(lengths)
    kept = [min(length, seq_len) for length in lengths]
    assert packing.n_rows == n
    assert columns(packing) == [list(range(n)), zeros, list(range(n)), zeros, kept]


@given(lengths=lengths_lists, seq_len=seq_lens)
def test_every_row_of_a_stream_is_full_but_the_last(lengths, seq_len):
    rows = real_tokens(stream_documents(lengths, seq_len=seq_len))
    assert all(tokens == seq_len for tokens in rows[:-1])
    assert sum(rows) == sum(lengths)


@given(lengths=lengths_lists, seq_len=seq_lens)
def test_a_stream_reads_the_documents_in_input_order_and_cuts_only_where_it_must(lengths, seq_len):
    _, starts, documents, offsets, segment_lengths = columns(
        stream_documents(lengths, seq_len=seq_len)
    )
    pieces = list(zip(documents, offsets, strict=True))
    assert pieces == sorted(pieces)
    for document, start, offset, length in zip(
        documents, starts, offsets, segment_lengths, strict=True
    ):
        assert offset + length == lengths[document] or start + length == seq_len


@pytest.mark.parametrize("policy", POLICIES)
@given(lengths=lengths_lists, seq_len=seq_lens)
@settings(max_examples=30)
def test_the_same_lengths_give_the_same_packing_in_any_integer_type(policy, lengths, seq_len):
    assume(lengths)
    expected = policy(lengths, seq_len=seq_len)
    for given_type in (np.uint16, np.int32, np.int64):
        packing = policy(np.array(lengths, given_type), seq_len=np.int64(seq_len))
        assert packing.n_rows == expected.n_rows
        assert columns(packing) == columns(expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_documents_give_no_rows(policy):
    packing = policy([], seq_len=8)
    assert packing.n_rows == 0
    assert columns(packing) == [[], [], [], [], []]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bad", [0, -3])
def test_a_document_without_tokens_is_refused_by_index_and_value(policy, bad):
    with pytest.raises(ValueError, match=rf"lengths\[2\] is {bad};"):
        policy([5, 7, bad, 0], seq_len=8)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bad", [0, -1])
def test_a_row_without_tokens_is_refused(policy, bad):
    with pytest.raises(ValueError, match=f"seq_len is {bad};"):
        policy([5, 7], seq_len=bad)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bad", [[2.5, 1.0], [[1, 2]], 7])
def test_lengths_that_are_not_a_list_of_whole_numbers_are_refused(policy, bad):
    with pytest.raises(ValueError, match="give one whole number per document"):
        policy(bad, seq_len=8)
