"""Log lines: one JSON object each, or pretty, and never a secret."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given, strategies as st

from damselfly.errors import OriginUnavailableError
from damselfly.log import HIDDEN, LINE_CHARS_MAX, configure, redact

logger = logging.getLogger("damselfly.test_log")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.captureWarnings(capture=False)


def only_line(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().removesuffix("\n").split("\n")
    return cast("dict[str, object]", json.loads(line))


class TestJSON:
    def test_an_event_and_its_fields_are_one_flat_object(self, stream: io.StringIO) -> None:
        configure("info", "json", stream)

        logger.info("artifact.completed", extra={"artifact": "blake3:9f", "bytes": 7, "ok": True})

        line = only_line(stream)
        assert str(line.pop("time")).endswith("Z")
        assert line == {
            "level": "info",
            "event": "artifact.completed",
            "logger": "damselfly.test_log",
            "artifact": "blake3:9f",
            "bytes": 7,
            "ok": True,
        }

    def test_an_error_is_told_with_its_causes(self, stream: io.StringIO) -> None:
        configure("info", "json", stream)
        error = OriginUnavailableError("reading model.safetensors")
        error.__cause__ = OSError("reset by peer")

        logger.warning("origin.failed", extra={"error": error})

        assert only_line(stream)["error"] == "reading model.safetensors: reset by peer"

    def test_a_traceback_stays_in_its_line(self, stream: io.StringIO) -> None:
        configure("info", "json", stream)
        try:
            int("https://me:pw@host/x?token=abc")
        except ValueError:
            logger.exception("api.failed")

        line = only_line(stream)
        assert "Traceback" in str(line["traceback"])
        assert "pw" not in str(line["traceback"])
        assert "abc" not in str(line["traceback"])

    def test_a_field_cannot_pose_as_the_event(self, stream: io.StringIO) -> None:
        configure("info", "json", stream)

        logger.info("peer.lost", extra={"event": "forged", "level": "forged", "time": "forged"})

        line = only_line(stream)
        assert (line["event"], line["level"]) == ("peer.lost", "info")

    def test_a_line_has_an_end(self, stream: io.StringIO) -> None:
        configure("info", "json", stream)

        logger.info("peer.lost", extra={"peer": "x" * 10 * LINE_CHARS_MAX})

        assert len(stream.getvalue()) < 2 * LINE_CHARS_MAX
        assert only_line(stream)["event"] == "peer.lost"

    @given(
        event=st.text(max_size=40),
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=6,
        ),
    )
    def test_whatever_is_logged_is_one_line_of_json(self, event: str, value: object) -> None:
        stream = io.StringIO()
        configure("info", "json", stream)

        logger.info("%s", event, extra={"value": value})

        assert set(only_line(stream)) >= {"time", "level", "event", "logger", "value"}


class TestPretty:
    def test_a_person_reads_time_level_event_and_fields(self, stream: io.StringIO) -> None:
        configure("info", "pretty", stream)

        logger.info("peer.lost", extra={"peer": "10.0.0.3:7460", "why": "no answer"})

        (line,) = stream.getvalue().splitlines()
        assert line.endswith('info    peer.lost peer=10.0.0.3:7460 why="no answer"')

    def test_auto_is_pretty_on_a_terminal_and_json_elsewhere(self, stream: io.StringIO) -> None:
        terminal = Terminal()
        configure("info", "auto", terminal)
        logger.info("peer.lost")
        configure("info", "auto", stream)
        logger.info("peer.lost")

        assert "\x1b[" in terminal.getvalue()
        assert only_line(stream)["event"] == "peer.lost"

    def test_a_field_cannot_command_the_terminal(self) -> None:
        terminal = Terminal()
        configure("info", "pretty", terminal)

        logger.info("peer.lost", extra={"peer": "\x1b[2J\r\n"})

        assert "\x1b[2J" not in terminal.getvalue()
        assert len(terminal.getvalue().splitlines()) == 1


class TestConfigure:
    def test_the_level_is_kept(self, stream: io.StringIO) -> None:
        configure("warning", "json", stream)

        logger.info("chunk.fetched")
        logger.warning("peer.lost")

        assert only_line(stream)["event"] == "peer.lost"

    def test_configuring_twice_does_not_tell_twice(self, stream: io.StringIO) -> None:
        configure("info", "json", stream)
        configure("info", "json", stream)

        logger.info("peer.lost")

        assert only_line(stream)["event"] == "peer.lost"

    def test_it_goes_to_stderr_by_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure("info", "json", sys.stderr)

        logger.info("peer.lost")

        out, err = capsys.readouterr()
        assert out == ""
        assert "peer.lost" in err


class TestSecrets:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("https://me:pw@host/x", "https://host/x"),
            ("https://hf_abc@host/x", "https://host/x"),
            ("s3://b/k?X-Amz-Signature=abc&X-Amz-Date=1", f"s3://b/k?{HIDDEN}"),
            ("see 'https://host/x?token=abc', please", f"see 'https://host/x?{HIDDEN}', please"),
            ("https://host/x?a=b#blake3:00", f"https://host/x?{HIDDEN}#blake3:00"),
            ("GET /x?sig=abc HTTP/1.1", f"GET /x?{HIDDEN} HTTP/1.1"),
            ("Authorization: Bearer hf_abcdefgh", f"Authorization: {HIDDEN}"),
            ("{'Authorization': 'Basic bWU6cHc='}", f"{{'Authorization': '{HIDDEN}'}}"),
            ("proxy-authorization: abc", f"proxy-authorization: {HIDDEN}"),
            ("with Bearer abcdefghij0", f"with Bearer {HIDDEN}"),
            ("HF_TOKEN=hf_abc", f"HF_TOKEN={HIDDEN}"),
            ("password: pw", f"password: {HIDDEN}"),
            ("aws_secret_access_key = abc", f"aws_secret_access_key = {HIDDEN}"),
        ],
    )
    def test_what_is_secret_is_hidden(self, text: str, shown: str) -> None:
        assert redact(text) == shown

    @pytest.mark.parametrize(
        "text",
        [
            "reading https://host:8443/a/b.safetensors",
            "10.0.0.3:7460 asks for blake3:9f12",
            "tokenizer.json: 7 bytes",
            "are you there?",
            "me@example.org",
        ],
    )
    def test_what_is_not_stays(self, text: str) -> None:
        assert redact(text) == text

    @pytest.mark.parametrize("fmt", ["json", "pretty"])
    def test_wherever_it_hides(self, stream: io.StringIO, fmt: str) -> None:
        configure("info", fmt, stream)
        url = "https://me:SECRET@host/x?sig=SECRET"

        logger.warning(
            "origin.failed %s",
            url,
            extra={
                "url": url,
                "hub_token": "SECRET",
                "headers": {"Authorization": "SECRET", "Cookie": "SECRET"},
                "tried": [url, {"deep": url}],
                "error": OriginUnavailableError(url),
                "thing": io.StringIO,
            },
        )

        assert "SECRET" not in stream.getvalue()
        assert HIDDEN in stream.getvalue()

    @given(st.text())
    def test_hiding_twice_is_hiding_once(self, text: str) -> None:
        assert redact(redact(text)) == redact(text)
