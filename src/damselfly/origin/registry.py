"""Which origin speaks a ref's scheme."""

from damselfly.errors import UsageError
from damselfly.model.ref import Ref
from damselfly.origin.file import FileOrigin
from damselfly.origin.gate import Gate
from damselfly.origin.http import HTTPOrigin
from damselfly.origin.port import Origin, OriginLimits
from damselfly.origin.web import Web

_KINDS = {"file": "file", "http": "http", "https": "http"}


class Origins:
    """Every origin of an agent, made when first asked for. Belongs to one event loop."""

    def __init__(self, limits: OriginLimits | None = None, gate: Gate | None = None) -> None:
        """A `gate` shares the hosts' budgets with others; without one they are asked alone."""
        self._limits = limits or OriginLimits()
        self._web = Web(self._limits, gate)
        self._made: dict[str, Origin] = {}

    def for_ref(self, ref: Ref) -> Origin:
        """The origin to ask about `ref`.

        Raises:
            UsageError: there is none for its scheme.
        """
        kind = _KINDS.get(ref.scheme)
        if kind is None:
            known = ", ".join(f"{scheme}://" for scheme in _KINDS)
            raise UsageError(f"no origin speaks {ref.scheme}:// ({ref.safe}): known are {known}")
        if kind not in self._made:
            self._made[kind] = self._make(kind)
        return self._made[kind]

    async def close(self) -> None:
        """Give everything back."""
        for origin in self._made.values():
            await origin.close()
        self._made.clear()
        await self._web.close()

    def _make(self, kind: str) -> Origin:
        match kind:
            case "file":
                return FileOrigin(self._limits)
            case _:
                return HTTPOrigin(self._limits, self._web)
