"""Quantities, tables and shortened text, as people read them."""

import io

import pytest
from hypothesis import given, strategies as st

from damselfly.cli.quantities import (
    age_text,
    bytes_text,
    countdown_text,
    rate_text,
    seconds_text,
    share_text,
)
from damselfly.cli.table import print_table
from damselfly.cli.terminal import plain, safe_ref, shorten


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10189, "10 KiB"),
        (1048063, "1023 KiB"),
        (1048575, "1.0 MiB"),
        (15 * 2**30, "15 GiB"),
        (2**40 * 3 // 2, "1.5 TiB"),
        (2**70, "1048576 PiB"),
    ],
)
def test_sizes_have_binary_units(count: int, text: str) -> None:
    assert bytes_text(count) == text


def test_rates_are_sizes_per_second() -> None:
    assert rate_text(2.5 * 2**20) == "2.5 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (192, "3 min 12 s"),
        (3600, "1 h 0 min"),
        (86399, "23 h 59 min"),
        (187200, "2 d 4 h"),
        (86400 * 400, "400 d 0 h"),
    ],
)
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (6, "0:06"), (754, "12:34"), (3723, "1:02:03")]
)
def test_countdowns_look_like_clocks(seconds: float, text: str) -> None:
    assert countdown_text(seconds) == text


@pytest.mark.parametrize(
    ("ago_s", "text"),
    [(0, "just now"), (-5, "just now"), (59, "59 s ago"), (180, "3 min ago"), (200000, "2 d ago")],
)
def test_ages_have_one_unit(ago_s: int, text: str) -> None:
    assert age_text(10**18 - ago_s * 10**9, 10**18) == text


def test_what_was_never_used_is_said() -> None:
    assert age_text(None, 10**18) == "never"


@given(part=st.integers(0, 1 << 50), whole=st.integers(1, 1 << 50))
def test_only_the_whole_is_all_of_it(part: int, whole: int) -> None:
    assert (share_text(part, whole) == "100%") == (part >= whole)
    assert (share_text(part, whole) == "0%") == (part == 0)


@given(text=st.text(), width=st.integers(0, 50))
def test_shortened_text_fits_and_keeps_its_ends(text: str, width: int) -> None:
    short = shorten(text, width)

    assert len(short) <= width or len(text) <= width
    if len(text) > width > 3:
        assert (short[0], short[-1]) == (text[0], text[-1])


@given(st.text())
def test_plain_text_commands_no_terminal(text: str) -> None:
    assert plain(text).isprintable()
    assert len(plain(text)) == len(text)


@pytest.mark.parametrize(
    ("ref", "shown"),
    [
        ("https://host/m/", "https://host/m/"),
        ("https://host/m/#blake3:00", "https://host/m/#blake3:00"),
        ("https://host/m?X-Amz-Signature=abc#blake3:00", "https://host/m?...#blake3:00"),
        ("https://host/m?sig=a?b", "https://host/m?..."),
    ],
)
def test_a_ref_is_shown_without_what_may_be_a_signature(ref: str, shown: str) -> None:
    assert safe_ref(ref) == shown


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    stream = io.StringIO()

    print_table(
        ("NAME", "SIZE", "REF"),
        [("a", "1.0 GiB", "https://host/a/"), ("longer", "7 B", "x\x1b[2J\ny")],
        stream,
        right=frozenset({"SIZE"}),
    )

    assert stream.getvalue().splitlines() == [
        "NAME       SIZE  REF",
        "a       1.0 GiB  https://host/a/",
        "longer      7 B  x\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}y",
    ]


def test_a_terminal_gets_its_last_column_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()

    print_table(("NAME", "REF"), [("a", "https://host/" + "x" * 200 + "/end")], stream)

    head, line = stream.getvalue().splitlines()
    assert head == "NAME  REF"
    assert len(line) == 79
    assert line.startswith("a     https://host/")
    assert line.endswith("/end")
