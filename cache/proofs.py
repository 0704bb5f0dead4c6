"""What was proved to origins, by whom and when, kept across restarts.

Credentials never come here. The store gives a random key of its own; whoever asks keeps a digest
of the credentials under that key. The key lies in a file that only the agent may read, so that the
catalog alone does not even tell a weak password to somebody who tries them all.
"""

import secrets

from damselfly.cache import layout
from damselfly.cache.catalog import Catalog
from damselfly.cache.directory import PRIVATE, Directory
from damselfly.errors import IntegrityError
from damselfly.model.digest import Digest

KEY_BYTES = 32
PROOFS_MAX = 16_384
"""The oldest go first: a proof that is lost costs one small request."""


class Proofs:
    """The table of proofs, and the key of its digests. Any thread may call anything."""

    def __init__(self, root: Directory, catalog: Catalog) -> None:
        self._catalog = catalog
        self.key = _kept_key(root)

    def __repr__(self) -> str:
        return "<Proofs>"

    def proved_ns(self, asker: Digest) -> int | None:
        """When this asker last proved it; None: never, or long ago."""
        return self._catalog.proved_ns(asker)

    def add(self, asker: Digest, now_ns: int) -> None:
        """The asker has proved it just now."""
        with self._catalog.change() as change:
            change.add_proof(asker, now_ns, PROOFS_MAX)

    def drop(self, asker: Digest) -> None:
        """The origin refuses the asker now, whatever was before."""
        with self._catalog.change() as change:
            change.drop_proof(asker)


def _kept_key(root: Directory) -> bytes:
    """The store's key; without a usable one a new one, under which nothing was proved yet."""
    try:
        key = root.read(layout.PROOF_KEY, KEY_BYTES)
    except (FileNotFoundError, IntegrityError):
        key = b""
    if len(key) != KEY_BYTES:
        key = secrets.token_bytes(KEY_BYTES)
        root.write(layout.PROOF_KEY, key, PRIVATE)
    return key
