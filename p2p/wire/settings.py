"""SETTINGS of RFC 9113 §6.5 and RFC 9218 §2.1: what the peer told us, checked."""

from enum import IntEnum

from damselfly.p2p.wire.codes import ErrorCode
from damselfly.p2p.wire.frames import (
    FRAME_BYTES_DEFAULT,
    FRAME_BYTES_LARGEST,
    WINDOW_MAX,
)
from damselfly.p2p.wire.violation import ViolationError


class Setting(IntEnum):
    """Identifiers; others are ignored."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    ENABLE_CONNECT_PROTOCOL = 0x8
    NO_RFC7540_PRIORITIES = 0x9


class RemoteSettings:
    """The peer's settings as they stand; the RFC's initial values before the first frame."""

    __slots__ = (
        "frame_bytes_max",
        "header_list_bytes_max",
        "header_table_bytes",
        "initial_window",
        "streams_max",
    )

    def __init__(self) -> None:
        self.header_table_bytes = 4096
        self.initial_window = 65535
        self.frame_bytes_max = FRAME_BYTES_DEFAULT
        self.streams_max = 1 << 31
        self.header_list_bytes_max = 1 << 31

    def apply(self, identifier: int, value: int, *, from_server: bool) -> None:
        """Take one value over.

        Raises:
            ViolationError: the value is outside of what the RFC allows.
        """
        match identifier:
            case Setting.HEADER_TABLE_SIZE:
                self.header_table_bytes = value
            case Setting.ENABLE_PUSH:
                if value > 1 or (value and from_server):
                    raise ViolationError(f"SETTINGS_ENABLE_PUSH of {value}")
            case Setting.MAX_CONCURRENT_STREAMS:
                self.streams_max = value
            case Setting.INITIAL_WINDOW_SIZE:
                if value > WINDOW_MAX:
                    raise ViolationError(
                        f"SETTINGS_INITIAL_WINDOW_SIZE of {value}",
                        error_code=ErrorCode.FLOW_CONTROL_ERROR,
                    )
                self.initial_window = value
            case Setting.MAX_FRAME_SIZE:
                if not FRAME_BYTES_DEFAULT <= value <= FRAME_BYTES_LARGEST:
                    raise ViolationError(f"SETTINGS_MAX_FRAME_SIZE of {value}")
                self.frame_bytes_max = value
            case Setting.MAX_HEADER_LIST_SIZE:
                self.header_list_bytes_max = value
            case Setting.ENABLE_CONNECT_PROTOCOL | Setting.NO_RFC7540_PRIORITIES:
                if value > 1:
                    raise ViolationError(f"{Setting(identifier).name} of {value}")
            case _:
                pass  # RFC 9113 §6.5.2: unknown settings are ignored.
