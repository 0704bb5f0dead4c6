"""Where chunks came from: what a journal keeps, and what it tells of."""

from damselfly.p2p.journal import Entry, How, Journal

ORIGIN = How("origin", "models.example", "nobody had it")
PEER = How("peer", "n1:1", "")


def test_a_journal_tells_what_was_noted_and_nothing_of_the_rest() -> None:
    journal = Journal()
    journal.grow(5)
    journal.note(1, ORIGIN, 0.5, 0.25)
    journal.note(3, PEER, 1.0, 0.5)

    assert list(journal.entries(range(5))) == [
        Entry(1, ORIGIN, 0.5, 0.25),
        Entry(3, PEER, 1.0, 0.5),
    ]


def test_the_latest_word_on_a_chunk_counts() -> None:
    journal = Journal()
    journal.grow(1)
    journal.note(0, PEER, 0.0, 0.0)
    journal.note(0, ORIGIN, 2.0, 0.0)

    assert [entry.how for entry in journal.entries(range(1))] == [ORIGIN]


def test_what_lies_beyond_is_passed_over() -> None:
    journal = Journal()
    journal.grow(2)
    journal.note(2, PEER, 0.0, 0.0)

    assert list(journal.entries(range(10))) == []
    assert len(journal) == 2
