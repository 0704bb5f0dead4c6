"""Questions and replies about budgets, from whoever sends them."""

import json

import pytest

from damselfly.errors import RemoteProtocolError
from damselfly.p2p.budget import BudgetQuestion, BudgetReply
from damselfly.p2p.messages import AgentID

GOOD: dict[str, object] = {"host": "models.example:8443", "agent": "n1:7460"}
BAD_QUESTIONS: dict[str, object] = {
    "no host": {"agent": "n1:1"},
    "no agent": {"host": "a"},
    "a host with a path": GOOD | {"host": "models.example/secret"},
    "a host with a query": GOOD | {"host": "models.example?sig=1"},
    "a host in capitals": GOOD | {"host": "Models.Example"},
    "a host with a line end": GOOD | {"host": "a\nb"},
    "a long host": GOOD | {"host": "a" * 300},
    "an agent without a port": GOOD | {"agent": "n1"},
    "less than no requests": GOOD | {"requests": -1},
    "too many requests": GOOD | {"requests": 100_000},
    "requests by halves": GOOD | {"requests": 1.5},
    "endless bytes": GOOD | {"length": 1 << 60},
    "a rest of a year": GOOD | {"rests_s": 3e7},
    "a list": [],
}


@pytest.mark.parametrize("name", BAD_QUESTIONS)
def test_a_bad_question_is_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        BudgetQuestion.parse(json.dumps(BAD_QUESTIONS[name]).encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"slots": [NaN]}',
        '{"slots": ["1"]}',
        '{"slots": [true]}',
        '{"slots": [1e9]}',
        '{"rests_s": NaN}',
        '{"rests_s": Infinity}',
        '{"length": -1}',
        '{"retry_after_s": -1}',
        "[" * 10_000,
        "",
        json.dumps({"slots": [0.0] * 10_000}),
        json.dumps({"x": "y" * 20_000}),
    ],
)
def test_a_bad_reply_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        BudgetReply.parse(text.encode())


@pytest.mark.parametrize("host", ["models.example", "127.0.0.1:8080", "[::1]:80", "a_b-c.d:1"])
def test_what_is_written_is_read_back(host: str) -> None:
    question = BudgetQuestion(host, AgentID("n1:7460"), 3, 1 << 20, 2, 7.5)
    reply = BudgetReply((-0.5, 1.25), 4096, 0.5, 2.0, 7.5, limits_bytes=True)

    assert BudgetQuestion.parse(question.to_json()) == question
    assert BudgetReply.parse(reply.to_json()) == reply
