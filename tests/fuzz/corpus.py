"""Where each target's fuzzing begins: valid input of its kind, and what was once found."""

import json
from collections.abc import Mapping
from pathlib import Path

from hpack import Encoder

from damselfly.model import lease
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.origin.push_journal import Journal, Session
from damselfly.p2p.wire import frames
from damselfly.p2p.wire.frames import Kind
from tests.fakes.wire import GET, OK

CORPUS = Path(__file__).parent / "corpus"
"""A folder for each target; a file there is one input, named by what it showed."""

_PLAN = Plan.of(
    "http://h/x/",
    [PlannedFile("a", (5, 5, 2), "v"), PlannedFile("b/ü", (), "", ("sha256:" + "0" * 64,))],
)
_MANIFEST = Manifest.seal(_PLAN, [Digest.of(bytes([number])) for number in range(3)])
_HEADER = json.dumps(
    {
        "__metadata__": {"k": "v"},
        "t": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "u": {"dtype": "U8", "shape": [], "data_offsets": [16, 17]},
    }
).encode()
_DIGEST = str(Digest.of(b""))
_MESSAGES: tuple[dict[str, object], ...] = (
    {"agent": "a:1", "boot": "0" * 32, "chunks": 64, "serial": 1, "swarm": _DIGEST},
    {"agent": "a:1", "boot": "0" * 32, "key": _DIGEST, "news": "ask"},
    {"boot": "0" * 32, "grants": [[0, 4]], "holders": [[3, ["b:1"]]], "members": []},
    {"digests": {"3": _DIGEST}, "joined": [], "left": ["b:1"], "sealed": _DIGEST},
    {"include": [], "exclude": [], "pin": False, "ref": "https://h/m/", "ttl_s": 5.0},
)
_LISTING = (
    b"<html><head><title>Index of /m/</title></head><body><h1>Index of /m/</h1><pre>"
    b'<a href="../">../</a>\n<a href="a%20b.bin">a b.bin</a>\n<a href="deep/">deep/</a>'
    b"</pre></body></html>"
)
_PAGE = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="urn:x"><EncodingType>url</EncodingType>'
    b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken><Contents>"
    b"<Key>m/a+b%25</Key><Size>7</Size><ETag>&quot;e&quot;</ETag></Contents></ListBucketResult>"
)
_PARTS = (
    b"<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>1"
    b"</NextPartNumberMarker><Part><PartNumber>1</PartNumber><Size>7</Size><ETag>e</ETag></Part>"
    b"</ListPartsResult>"
)
_REFUSAL = b"<Error><Code>AccessDenied</Code><Region>eu-west-1</Region></Error>"
_JOURNAL = Journal("owner", {"a": Session("name", "blake3:0", 5)}).canonical()
_CLOUD_PAGES = (
    b'{"items":[{"name":"m/x","size":"5","generation":"17"}],"nextPageToken":"m/y"}',
    b"<?xml version='1.0'?><EnumerationResults><Blobs><Blob><Name>m/x</Name><Properties>"
    b"<Content-Length>5</Content-Length><Etag>0x8D</Etag></Properties></Blob></Blobs>"
    b"<NextMarker>m</NextMarker></EnumerationResults>",
)
_REQUEST = frames.frame(Kind.HEADERS, 5, 1, Encoder().encode(GET))
_ANSWER = frames.frame(Kind.HEADERS, 4, 1, Encoder().encode(OK)) + frames.frame(
    Kind.DATA, 1, 1, b"body"
)

SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "manifest": (_MANIFEST.canonical(),),
    "plan": (_PLAN.canonical(),),
    "header": (len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(17),),
    "ref": (
        b"https://h.example:8443/a/%20?x=1#" + _DIGEST.encode(),
        b"hf://org/name@main/sub/",
        b"s3://bucket/prefix/",
        b"oci://host:5000/repo/name:tag@sha256:" + b"0" * 64,
        b"file:///models/x",
    ),
    "path": (b"weights/model-00001.safetensors", "b/ü".encode()),
    "bitmap": (bytes(8), b"\xff" * 8),
    "lease_file": (lease.encode(None, 1), lease.encode(5, 1)),
    "cloud_pages": _CLOUD_PAGES,
    "listing": (_LISTING,),
    "bucket": (_PAGE, _PARTS, _REFUSAL, _JOURNAL),
    "messages": tuple(json.dumps(message).encode() for message in _MESSAGES),
    "wire_server": (_REQUEST, frames.frame(Kind.PING, 0, 0, bytes(8))),
    "wire_client": (_ANSWER, frames.frame(Kind.GOAWAY, 0, 0, bytes(8))),
    "field_block": (bytes(Encoder().encode(GET)), bytes(Encoder().encode(OK))),
    "priority": (b"u=0, i", b"u=7;x=1"),
}


def inputs(target: str) -> list[bytes]:
    """The seeds of a target and what its folder holds, in a fixed order."""
    folder = CORPUS / target
    kept = sorted(folder.iterdir()) if folder.is_dir() else []
    return [*SEEDS[target], *(file.read_bytes() for file in kept)]
