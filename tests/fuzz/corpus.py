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
_FOUND = [0, "0" * 64, "sha256:" + "0" * 64]
_BUDGETS: tuple[dict[str, object], ...] = (
    {"host": "h:80", "agent": "a:1", "requests": 3, "length": 9, "returned": 1, "rests_s": 2.5},
    {"slots": [-0.5, 0.25], "length": 9, "length_in_s": 0.5, "rests_s": 1.0, "limited": True},
    {"retry_after_s": 0.5, "limited": True},
)
_HASHES: tuple[dict[str, object], ...] = (
    {"agent": "a:1", "boot": "0" * 32, "files": 8, "wanted": "/w==", "found": [_FOUND]},
    {"agent": "a:1", "boot": "0" * 32, "files": 8, "wanted": "/w==", "reading": [[1, 5]]},
    {"yours": [0, 3], "others": [1], "found": [_FOUND]},
)
_COMMIT = "0123456789" * 4
_TREE = json.dumps(
    [
        {"type": "directory", "path": "d", "oid": _COMMIT, "size": 0},
        {"type": "file", "path": "d/a", "oid": _COMMIT, "size": 7},
        {
            "type": "file",
            "path": "b.bin",
            "oid": _COMMIT,
            "size": 9,
            "lfs": {"oid": "0" * 64, "size": 9, "pointerSize": 130},
        },
    ]
).encode()
_HEAD = (
    b'Link: <https://huggingface.co/api/models/org/name/tree/x?cursor=1>; rel="next"\n'
    b"Location: https://cdn.test/x?Expires=1800000300&Signature=x\n"
    b"X-Linked-Size: 7\nX-Linked-ETag: " + b'"' + b"0" * 64 + b'"'
)
_LAYER = {
    "digest": "sha256:" + "0" * 64,
    "size": 5,
    "mediaType": "application/vnd.cncf.model.weight.v1.raw",
    "annotations": {"org.cncf.model.filepath": "a.bin"},
}
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
    "budgets": tuple(json.dumps(message).encode() for message in _BUDGETS),
    "hashes": tuple(json.dumps(message).encode() for message in _HASHES),
    "json_bounds": (b'{"a":[1,"[\\\\",{"b":"\\""}],"c":""}', b"[[[[]]]]", b"[[[[[]]]]]"),
    "hub": (
        b"\n\n" + _TREE,
        b'\n\n{"sha": "' + _COMMIT.encode() + b'"}',
        _HEAD + b"\n\n" + _TREE,
        b"X-Error-Code: GatedRepo\n\n",
    ),
    "hub_ref": (
        b"hf://org/name@main/sub/",
        b"hf://datasets/org/name@refs/pr/3/a%20b",
        b"hf://models/gpt2@v1.0",
    ),
    "oci": (
        json.dumps({"schemaVersion": 2, "layers": [_LAYER]}).encode(),
        json.dumps({"schemaVersion": 2, "manifests": [_LAYER]}).encode(),
    ),
    "challenge": (
        b'Bearer realm="https://t.test/t",service="s",scope="repository:o/n:pull"\n\n'
        b'{"token": "t", "expires_in": 60}',
        b'Basic realm="r\\"", Bearer realm=x',
    ),
    "address": (
        b"https://cdn.test/x?X-Amz-Date=20270115T075900Z&X-Amz-Expires=900&X-Amz-Signature=x",
        b"/x?Expires=1800000300",
        b"//h:8/x?se=2027-01-15T08:05:00Z",
        b"?Policy=eyJTdGF0ZW1lbnQiOltdfQ__",
        b"Wed, 21 Oct 2026 07:28:00 GMT",
        b'"api";r=0;t=30',
    ),
    "answer": (_TREE, b'{"a": [1, 2.5, null, true, "x"]}'),
    "signature": (b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}',),
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
