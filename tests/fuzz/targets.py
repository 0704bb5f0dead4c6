"""Every parser that eats foreign bytes, as one function each: it reads them, or raises by name.

A target returns nothing. It lets an exception out only where the code base has a bug: any error
but those that the parser documents, or something that was read and is not what it says.

`python -m tests.fuzz` runs them under a coverage-guided fuzzer; `test_fuzz_corpus.py` runs what is
in `corpus/` with every test: what once made a parser stumble stays there.
"""

import contextlib
import json
from collections.abc import Callable
from functools import partial
from typing import cast

from damselfly.errors import (
    HeaderError,
    ManifestError,
    RemoteProtocolError,
    UnsupportedFormatError,
    UsageError,
    explain,
)
from damselfly.model import bounded_json, lease, safetensors
from damselfly.model.bitmap import Bitmap
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.paths import check_path
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin import az, gs
from damselfly.origin.listing import parse_listing
from damselfly.origin.push_journal import Journal
from damselfly.origin.s3 import page_of
from damselfly.origin.s3_errors import S3Refusal
from damselfly.origin.s3_push import parts_of
from damselfly.origin.web import Answer
from damselfly.p2p.agents import parse_hello
from damselfly.p2p.budget import BudgetHome, BudgetMember, BudgetQuestion, BudgetReply, Rates
from damselfly.p2p.hashing import HashDesk, Hashing, HashReply, HashReport
from damselfly.p2p.messages import HaveLine, LiveLine, Reply, Report, SwarmID
from damselfly.p2p.orders import Order
from damselfly.p2p.refs import RefReply, RefReport
from damselfly.p2p.wire import frames
from damselfly.p2p.wire.connection import Role
from damselfly.p2p.wire.headers import HeaderCodec
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.priority import Priority
from tests.fakes.wire import GET, HELLO, End
from tests.fuzz import answers
from tests.fuzz.reading import tried

CHUNK_COUNT = 64
FILE_COUNT = 8
_VALUES_MAX = 40
_DEPTH_MAX = 4
_SWARM = SwarmID(str(Digest.of(b"a swarm")))
_LIMITS = Limits(stream_window_bytes=65535, connection_window_bytes=65535, streams_max=3)


def manifest(data: bytes) -> None:
    """A manifest has one spelling."""
    found = tried(partial(Manifest.parse, data), ManifestError, UnsupportedFormatError)
    assert found is None or found.canonical() == data


def plan(data: bytes) -> None:
    """A plan that is read can be written and read again."""
    found = tried(partial(Plan.parse, data), RemoteProtocolError)
    assert found is None or Plan.parse(found.canonical()) == found


def header(data: bytes) -> None:
    """The tensors of a header fill the file, whatever size it is said to have."""
    for file_bytes in (len(data), 1 << 40):
        length = tried(partial(safetensors.header_bytes, data, file_bytes), HeaderError)
        if length is None or length > len(data):
            continue
        found = tried(partial(safetensors.parse, data, file_bytes), HeaderError)
        if found is not None:
            held = sum(tensor.stop - tensor.start for tensor in found.tensors)
            assert found.length + held == file_bytes


def ref(data: bytes) -> None:
    """A ref that is read is canonical, and shows no secret of its query."""
    text = data.decode(errors="replace")
    found = tried(partial(Ref.parse, text), UsageError)
    if found is not None:
        assert Ref.parse(str(found)) == found
        assert str(found).isascii()
        assert ".." not in found.decoded_path.split("/")


def path(data: bytes) -> None:
    """A path stays below where it begins."""
    text = data.decode(errors="surrogateescape")
    if tried(partial(check_path, text), ManifestError) is not None:
        assert not text.startswith("/")
        assert not {"", ".", ".."} & set(text.split("/"))


def bitmap(data: bytes) -> None:
    """A bitmap has a bit for each chunk, and no more."""
    found = tried(partial(Bitmap.parse, CHUNK_COUNT, data), RemoteProtocolError)
    assert found is None or found.bits >> CHUNK_COUNT == 0


def lease_file(data: bytes) -> None:
    """Whatever a lease's file holds, it is a lease."""
    assert lease.parse("fuzz", data).id == "fuzz"


def listing(data: bytes) -> None:
    """Names of a listing are names: nothing leads elsewhere."""
    page = data.decode(errors="replace")
    with contextlib.suppress(ManifestError):
        for entry in parse_listing(page, "http://host/m/") or []:
            assert entry.name == check_path(entry.name)
            assert "/" not in entry.name


def bucket(data: bytes) -> None:
    """What S3 answers, and the note that a push left there."""
    for read in (page_of, parts_of, Journal.parse):
        with contextlib.suppress(ValueError):
            read(data)
    for status in (200, 301, 403):
        refusal = S3Refusal.of(Answer(status, {}, data, "http://h/"))
        assert explain(refusal.error("fuzzing")).isprintable()


def cloud_pages(data: bytes) -> None:
    """Pages of clouds' listings: objects that have a name and are pinned, and a token that ends."""
    for parse, kind in ((gs.parse_page, "generation:"), (az.parse_page, "etag:")):
        page = tried(partial(parse, data, "x://bucket/"), RemoteProtocolError)
        for each in () if page is None else page.objects:
            assert each.key
            assert each.size >= 0
            assert each.version.startswith(kind)
            assert each.version.isprintable()
        assert page is None or page.next_token != ""


def messages(data: bytes) -> None:
    """What agents tell each other about swarms, refs, orders and themselves."""
    for read in (Report.parse, RefReport.parse, RefReply.parse, Order.parse, parse_hello):
        tried(partial[object](read, data), RemoteProtocolError)
    for read_counted in (Reply.parse, LiveLine.parse, HaveLine.parse):
        tried(partial[object](read_counted, data, CHUNK_COUNT), RemoteProtocolError)


def budgets(data: bytes) -> None:
    """Questions and answers about budgets, and what both ends make of them."""
    rates = Rates(requests=5.0, bytes=1e6)
    question = tried(partial(BudgetQuestion.parse, data), RemoteProtocolError)
    if question is not None:
        assert BudgetQuestion.parse(question.to_json()) == question
        home = BudgetHome(rates)
        answer = home.asked(question, 0.0)
        told_again = BudgetReply.parse(answer.to_json())
        assert told_again.limits_requests
        assert told_again.limits_bytes
        assert len(answer.slots) <= question.requests
        assert answer.length <= question.length
        told = home.next_action()
        assert told is None or question.rests_s
    reply = tried(partial(BudgetReply.parse, data), RemoteProtocolError)
    if reply is not None:
        assert len(BudgetReply.parse(reply.to_json()).slots) == len(reply.slots)
        member = BudgetMember(rates, 0.0)
        member.replied(reply, 3, 0.0)
        for now in (0.0, 1.0, 1e6):
            member.read(1 << 20, now)
            assert now <= member.may_ask(now) < 1e6 + 60.0
        assert member.next_slot(1e6) is None, "what is lent is not lent for long"


def hashes(data: bytes) -> None:
    """Reports of whole files and answers to them, and what both ends make of them."""
    report = tried(partial(HashReport.parse, data), RemoteProtocolError)
    if report is not None:
        assert HashReport.parse(report.to_json()) == report
        desk = HashDesk(_SWARM, report.file_count)
        for now in (0.0, 1.0, 100.0):
            answer = desk.reported(report, now)
            assert HashReply.parse(answer.to_json(), report.file_count) == answer
    reply = tried(partial(HashReply.parse, data, FILE_COUNT), RemoteProtocolError)
    if reply is not None:
        assert HashReply.parse(reply.to_json(), FILE_COUNT) == reply
        expected = ("sha256:" + "0" * 64,)
        member = Hashing({0: expected, 3: expected}, {0: 5, 3: 5}, now=0.0)
        member.here(0, 1.0, Digest.of(b""), 0.0)
        member.heard(reply, 1.0)
        member.next_action(100.0)


def json_bounds(data: bytes) -> None:
    """JSON is bounded as it is told, and what is within the bounds is read as ever."""
    with contextlib.suppress(ValueError):
        _check_bounds(bounded_json.loads(data, values_max=_VALUES_MAX, depth_max=_DEPTH_MAX))
    try:
        plain: object = json.loads(data.decode())
    except (ValueError, RecursionError):
        return
    is_small = sum(data.count(mark) for mark in (b",", b"[", b"{")) < _VALUES_MAX
    if is_small and _depth(plain) <= _DEPTH_MAX:
        read = bounded_json.loads(data, values_max=_VALUES_MAX, depth_max=_DEPTH_MAX)
        assert json.dumps(read) == json.dumps(plain)


def _check_bounds(value: object) -> None:
    assert _depth(value) <= _DEPTH_MAX
    count, rest = 0, [value]
    while rest:
        count += 1
        rest += _inside(rest.pop()) or ()
    assert count <= _VALUES_MAX


def _depth(value: object) -> int:
    """How many brackets are around the innermost value."""
    depth, level = 0, [value]
    while insides := [inner for each in level if (inner := _inside(each)) is not None]:
        depth += 1
        level = [each for inner in insides for each in inner]
    return depth


def _inside(value: object) -> list[object] | None:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else None


def wire_server(data: bytes) -> None:
    """Bytes of a client that has said hello: events, or one violation."""
    end = End(Role.SERVER, _LIMITS)
    end.feed(HELLO)
    tried(partial(end.feed, data), RemoteProtocolError)
    end.drain()


def wire_client(data: bytes) -> None:
    """Bytes of a server that was asked for three things."""
    end = End(Role.CLIENT, _LIMITS)
    end.core.request(GET, 0.0)
    end.core.request(GET, 0.0, sink=memoryview(bytearray(500)))
    end.core.request((*GET, ("priority", "u=0")), 0.0, ended=False)
    end.feed(frames.settings_frame([]))
    tried(partial(end.feed, data), RemoteProtocolError)
    end.drain()


def field_block(data: bytes) -> None:
    """A compressed field block, through our codec's limits."""
    tried(partial(HeaderCodec(_LIMITS).decode, data), RemoteProtocolError)


def priority(data: bytes) -> None:
    """A priority is always one, as RFC 9218 wants it."""
    assert 0 <= Priority.parse(data.decode("latin-1")).urgency <= 7


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        manifest,
        plan,
        header,
        ref,
        path,
        bitmap,
        lease_file,
        listing,
        bucket,
        cloud_pages,
        messages,
        budgets,
        hashes,
        json_bounds,
        answers.hub,
        answers.hub_ref,
        answers.oci,
        answers.challenge,
        answers.address,
        answers.answer,
        answers.signature,
        wire_server,
        wire_client,
        field_block,
        priority,
    )
}
