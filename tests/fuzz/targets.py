"""Every parser that eats foreign bytes, as one function each: it reads them, or raises by name.

A target returns nothing. It lets an exception out only where the code base has a bug: any error
but those that the parser documents, or something that was read and is not what it says.

`python -m tests.fuzz` runs them under a coverage-guided fuzzer; `test_fuzz_corpus.py` runs what is
in `corpus/` with every test: what once made a parser stumble stays there.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from damselfly.errors import (
    DamselflyError,
    HeaderError,
    ManifestError,
    RemoteProtocolError,
    UnsupportedFormatError,
    UsageError,
    explain,
)
from damselfly.model import lease, safetensors
from damselfly.model.bitmap import Bitmap
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
from damselfly.p2p.messages import HaveLine, LiveLine, Reply, Report
from damselfly.p2p.orders import Order
from damselfly.p2p.refs import RefReply, RefReport
from damselfly.p2p.wire import frames
from damselfly.p2p.wire.connection import Role
from damselfly.p2p.wire.headers import HeaderCodec
from damselfly.p2p.wire.limits import Limits
from damselfly.p2p.wire.priority import Priority
from tests.fakes.wire import GET, HELLO, End

CHUNK_COUNT = 64
_LIMITS = Limits(stream_window_bytes=65535, connection_window_bytes=65535, streams_max=3)


_T = TypeVar("_T")


def _read(read: Callable[[], _T], *errors: type[DamselflyError]) -> _T | None:
    """Read something; None if it was refused, in one readable line, with one of `errors`."""
    try:
        return read()
    except errors as exc:
        told = explain(exc)
    assert told.isprintable()
    return None


def manifest(data: bytes) -> None:
    """A manifest has one spelling."""
    found = _read(partial(Manifest.parse, data), ManifestError, UnsupportedFormatError)
    assert found is None or found.canonical() == data


def plan(data: bytes) -> None:
    """A plan that is read can be written and read again."""
    found = _read(partial(Plan.parse, data), RemoteProtocolError)
    assert found is None or Plan.parse(found.canonical()) == found


def header(data: bytes) -> None:
    """The tensors of a header fill the file, whatever size it is said to have."""
    for file_bytes in (len(data), 1 << 40):
        length = _read(partial(safetensors.header_bytes, data, file_bytes), HeaderError)
        if length is None or length > len(data):
            continue
        found = _read(partial(safetensors.parse, data, file_bytes), HeaderError)
        if found is not None:
            held = sum(tensor.stop - tensor.start for tensor in found.tensors)
            assert found.length + held == file_bytes


def ref(data: bytes) -> None:
    """A ref that is read is canonical, and shows no secret of its query."""
    text = data.decode(errors="replace")
    found = _read(partial(Ref.parse, text), UsageError)
    if found is not None:
        assert Ref.parse(str(found)) == found
        assert str(found).isascii()
        assert ".." not in found.decoded_path.split("/")


def path(data: bytes) -> None:
    """A path stays below where it begins."""
    text = data.decode(errors="surrogateescape")
    if _read(partial(check_path, text), ManifestError) is not None:
        assert not text.startswith("/")
        assert not {"", ".", ".."} & set(text.split("/"))


def bitmap(data: bytes) -> None:
    """A bitmap has a bit for each chunk, and no more."""
    found = _read(partial(Bitmap.parse, CHUNK_COUNT, data), RemoteProtocolError)
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
        page = _read(partial(parse, data, "x://bucket/"), RemoteProtocolError)
        for each in () if page is None else page.objects:
            assert each.key
            assert each.size >= 0
            assert each.version.startswith(kind)
            assert each.version.isprintable()
        assert page is None or page.next_token != ""


def messages(data: bytes) -> None:
    """What agents tell each other about swarms, refs, orders and themselves."""
    for read in (Report.parse, RefReport.parse, RefReply.parse, Order.parse, parse_hello):
        _read(partial[object](read, data), RemoteProtocolError)
    for read_counted in (Reply.parse, LiveLine.parse, HaveLine.parse):
        _read(partial[object](read_counted, data, CHUNK_COUNT), RemoteProtocolError)


def wire_server(data: bytes) -> None:
    """Bytes of a client that has said hello: events, or one violation."""
    end = End(Role.SERVER, _LIMITS)
    end.feed(HELLO)
    _read(partial(end.feed, data), RemoteProtocolError)
    end.drain()


def wire_client(data: bytes) -> None:
    """Bytes of a server that was asked for three things."""
    end = End(Role.CLIENT, _LIMITS)
    end.core.request(GET, 0.0)
    end.core.request(GET, 0.0, sink=memoryview(bytearray(500)))
    end.core.request((*GET, ("priority", "u=0")), 0.0, ended=False)
    end.feed(frames.settings_frame([]))
    _read(partial(end.feed, data), RemoteProtocolError)
    end.drain()


def field_block(data: bytes) -> None:
    """A compressed field block, through our codec's limits."""
    _read(partial(HeaderCodec(_LIMITS).decode, data), RemoteProtocolError)


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
        wire_server,
        wire_client,
        field_block,
        priority,
    )
}
