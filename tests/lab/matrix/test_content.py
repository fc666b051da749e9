"""Numbered blocks: a stream that is whole, and every way in which it may not be."""

import random

import pytest

from lab.matrix.content import Reader, Tally, block

SIZE = 64
COUNT = 50


def stream(numbers: list[int], size: int = SIZE) -> bytes:
    return b"".join(block(it, size) for it in numbers)


def read(
    data: bytes, pieces: random.Random | None = None, *, size: int = SIZE, sent: int = COUNT
) -> tuple[Reader, list[int]]:
    """All of it, in pieces of random length if asked for."""
    reader, numbers, at = Reader(size), [], 0
    while at < len(data):
        length = pieces.randint(1, 3 * size) if pieces else len(data)
        numbers += reader.feed(data[at : at + length], sent)
        at += length
    return reader, numbers


@pytest.mark.parametrize("size", [24, 64, 1000, 2056])
@pytest.mark.parametrize("seed", range(5))
def test_a_whole_stream_is_whole_however_it_is_cut(size: int, seed: int) -> None:
    reader, numbers = read(stream(list(range(COUNT)), size), random.Random(seed), size=size)
    assert numbers == list(range(COUNT))
    tally = reader.tally
    assert (tally.lost(COUNT), tally.repeated, tally.swapped, reader.foreign, reader.pending) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_any_missing_bytes_are_found(seed: int) -> None:
    dice = random.Random(seed)
    data = stream(list(range(COUNT)))
    start = dice.randrange(len(data))
    length = dice.randint(1, len(data) - start)
    reader, numbers = read(data[:start] + data[start + length :], dice)
    assert reader.tally.lost(COUNT) * SIZE >= length
    assert reader.tally.lost(COUNT) * SIZE <= length + 3 * SIZE  # the block before, the one behind, and a false start
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_come_twice_are_found(seed: int) -> None:
    dice = random.Random(seed)
    data = stream(list(range(COUNT)))
    start = dice.randrange(len(data) - 3 * SIZE)
    again = dice.randint(2 * SIZE, 3 * SIZE)  # has a whole block in it
    reader, _ = read(data[: start + again] + data[start:], dice)
    assert reader.tally.repeated
    assert reader.tally.lost(COUNT) == 0 or reader.foreign


def test_swapped_blocks_are_found() -> None:
    reader, numbers = read(stream([0, 2, 1, 3]), sent=4)
    assert numbers == [0, 2, 1, 3]
    assert (reader.tally.lost(4), reader.tally.repeated, reader.tally.swapped) == (0, 0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_one_changed_byte_is_found(seed: int) -> None:
    dice = random.Random(seed)
    data = bytearray(stream(list(range(COUNT))))
    data[dice.randrange(len(data))] ^= dice.randint(1, 255)
    reader, _ = read(bytes(data), dice)
    assert reader.tally.lost(COUNT) or reader.tally.repeated or reader.tally.swapped or reader.foreign


def test_garbage_of_any_length_is_foreign_and_not_kept() -> None:
    reader, numbers = read(random.Random(1).randbytes(100_000), random.Random(2))
    assert numbers == []
    assert reader.pending < SIZE
    assert reader.foreign + reader.pending == 100_000
    assert reader.feed(block(7, SIZE) + block(8, SIZE), COUNT)[-1:] == [8]


def test_a_number_that_was_never_sent_is_foreign() -> None:
    reader, numbers = read(stream([0, 1, 1 << 40, 2]), sent=3)
    assert numbers == [0, 1, 2]
    assert reader.foreign == SIZE


def test_a_tally_knows_late_from_again() -> None:
    tally = Tally()
    assert [tally.count(it) for it in (0, 3, 1, 1, 3, 4)] == [True, True, True, False, False, True]
    assert (tally.received, tally.repeated, tally.swapped, tally.lost(6)) == (4, 2, 1, 2)
