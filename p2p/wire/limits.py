"""What the wire puts up with, and how long it waits."""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every bound of one connection. Floods are buckets: a burst, and so many a second after it.

    A bucket that runs dry ends the connection with ENHANCE_YOUR_CALM. The bursts are many times
    what curl, nghttp2 and our own agents do; the rates keep a day-long connection safe.
    """

    # Sizes.
    frame_bytes_max: int = MIB  # DATA we take in one frame, and send if the peer takes it
    stream_window_bytes: int = 256 * KIB  # a stream with a sink gets the sink's length instead
    connection_window_bytes: int = 64 * MIB
    streams_max: int = 128  # that the peer may have open
    header_block_bytes_max: int = 16 * KIB  # as compressed
    header_list_bytes_max: int = 32 * KIB  # as RFC 9113 §6.5.2 counts: 32 bytes more for each
    header_count_max: int = 128
    continuation_frames_max: int = 16
    control_frame_bytes_max: int = 16 * KIB  # HEADERS, SETTINGS, GOAWAY and the like
    control_queue_bytes_max: int = 256 * KIB  # answers to a peer that does not read them
    resets_remembered: int = 1024  # streams we reset, whose late frames are no offence

    # Floods.
    control_burst: int = 1000  # SETTINGS, PING, PRIORITY, PRIORITY_UPDATE, unknown frames
    control_per_s: float = 100.0
    reset_burst: int = 200  # streams the peer resets, or makes us reset, or opens too many of
    reset_per_s: float = 50.0
    window_update_burst: int = 2000  # each DATA frame that we send allows four more
    window_update_per_s: float = 200.0
    empty_data_burst: int = 100  # DATA without data, and not the last of its stream
    empty_data_per_s: float = 10.0
    small_data_burst: int = 10_000  # DATA of less than 64 bytes
    small_data_per_s: float = 2000.0

    # Patience.
    settings_s: float = 5.0  # for the preface and the first SETTINGS
    settings_ack_s: float = 30.0
    frame_s: float = 10.0  # for the rest of a header block or control frame once it has begun
    ping_after_s: float = 5.0  # of silence while we wait for something
    dead_after_s: float = 10.0  # of silence: the ping had no answer
    blocked_s: float = 60.0  # a window of the peer's stays shut with data waiting behind it
    idle_s: float = 300.0  # without a stream

    def __post_init__(self) -> None:
        assert 16 * KIB <= self.frame_bytes_max < 1 << 24
        assert 65535 <= self.stream_window_bytes < 1 << 31
        assert 65535 <= self.connection_window_bytes < 1 << 31
        assert self.ping_after_s < self.dead_after_s
