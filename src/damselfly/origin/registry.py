"""Which origin speaks a ref's scheme."""

from damselfly.model.ref import Ref
from damselfly.origin.file import FileOrigin
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import Origin, OriginLimits


class Origins:
    """Every origin of an agent, made when first asked for. Belongs to one event loop."""

    def __init__(self, limits: OriginLimits | None = None) -> None:
        self._limits = limits or OriginLimits()
        self._made: dict[str, Origin] = {}

    def for_ref(self, ref: Ref) -> Origin:
        """The origin to ask about `ref`; its scheme was checked when it was parsed."""
        kind = "file" if ref.scheme == "file" else "http"
        if kind not in self._made:
            make = FileOrigin if kind == "file" else HTTPOrigin
            self._made[kind] = make(self._limits)
        return self._made[kind]

    async def close(self) -> None:
        """Give everything back."""
        for origin in self._made.values():
            await origin.close()
        self._made.clear()
