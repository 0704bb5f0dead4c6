"""Who may see what is cached. Pure: facts in, a name or a verdict out.

A pod that mounts a ref sees the copy of this node only if its *own* credentials open the ref at the
origin. Whoever has proved that is believed for a while, so that pods start while an origin is slow
or down; for how long is the time that somebody whose rights end goes on seeing.

Rule 1: nobody is a somebody too. Who shows no credentials has to prove that none are needed.

Rule 2: a proof belongs to a ref and the credentials together, also to the query of a presigned ref.
It is kept under a digest of both with the store's own key: credentials are not kept at all.

Rule 3: a refusal ends what was proved before. Silence of the origin does not, until the time is up.

Rule 4: files of this machine are not proved: the system asks who the agent is, and nobody else.

Rule 5: a clock that was set back proves nothing: what was proved in the future is forgotten.
"""

from struct import Struct

from blake3 import blake3

from damselfly.model.digest import Digest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.model.ref import Ref
from damselfly.origin.access import Access

_MARK = b"damselfly-asker/1\n"
_LENGTH = Struct("<Q")
_ABSENT = b"\0"
_PRESENT = b"\1"
_S = 1_000_000_000


def asker_of(key: bytes, ref: Ref, access: Access) -> Digest:
    """Name who asks for what, so that only who knows the key can tell whether it was somebody."""
    hasher = blake3(_MARK, key=key)
    for part in (str(ref.unpinned), access.token, access.username, access.password):
        if part is None:
            hasher.update(_ABSENT)
        else:
            data = part.encode()
            hasher.update(_PRESENT + _LENGTH.pack(len(data)) + data)
    return Digest(hasher.digest())


def is_needed(ref: Ref) -> bool:
    """Whether a ref has to be proved at all."""
    return ref.scheme != "file"


def is_believed(proved_ns: int | None, now_ns: int, ttl_s: float) -> bool:
    """Whether what was proved then is believed now."""
    return proved_ns is not None and 0 <= now_ns - proved_ns < ttl_s * _S


def telling_file(plan: Plan) -> PlannedFile:
    """The file whose reading proves it: the largest. A README may be open where weights are not."""
    return max(plan.files, key=lambda file: (file.bytes, file.path))
