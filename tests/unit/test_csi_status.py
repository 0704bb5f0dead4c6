"""Errors become codes: each of them, and those that leave something are not final."""

import grpc
import pytest

from damselfly.csi.status import (
    Code,
    ConflictError,
    CSIError,
    PendingError,
    code_of,
    shortened,
    system_error,
)
from damselfly.errors import DamselflyError, StoreFullError, UnavailableError, error_classes

TABLE = {
    "DamselflyError": Code.INTERNAL,
    "UsageError": Code.INVALID_ARGUMENT,
    "ConfigError": Code.INVALID_ARGUMENT,
    "NotFoundError": Code.NOT_FOUND,
    "ArtifactNotFoundError": Code.NOT_FOUND,
    "ChunkNotFoundError": Code.NOT_FOUND,
    "OriginNotFoundError": Code.NOT_FOUND,
    "JobNotFoundError": Code.NOT_FOUND,
    "IntegrityError": Code.DATA_LOSS,
    "DigestMismatchError": Code.DATA_LOSS,
    "ManifestError": Code.DATA_LOSS,
    "HeaderError": Code.DATA_LOSS,
    "OriginChangedError": Code.DATA_LOSS,
    "SignatureError": Code.DATA_LOSS,
    "UnsupportedFormatError": Code.FAILED_PRECONDITION,
    "UnavailableError": Code.UNAVAILABLE,
    "OriginBusyError": Code.UNAVAILABLE,
    "OriginUnavailableError": Code.UNAVAILABLE,
    "PeerUnavailableError": Code.UNAVAILABLE,
    "AgentUnavailableError": Code.UNAVAILABLE,
    "CapacityError": Code.RESOURCE_EXHAUSTED,
    "StoreFullError": Code.RESOURCE_EXHAUSTED,
    "LeaseHeldError": Code.ABORTED,
    "StoreInUseError": Code.UNAVAILABLE,
    "ProtocolError": Code.UNAVAILABLE,
    "LocalProtocolError": Code.INTERNAL,
    "RemoteProtocolError": Code.UNAVAILABLE,
    "DeniedError": Code.PERMISSION_DENIED,
    "OriginDeniedError": Code.PERMISSION_DENIED,
    "CancelledError": Code.ABORTED,
    "PartialError": Code.ABORTED,
    "StillRunningError": Code.ABORTED,
}


def made(cls: type[DamselflyError]) -> DamselflyError:
    error = cls.__new__(cls)
    error.args = ("words",)
    return error


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_every_error_has_the_code_of_the_table(cls: type[DamselflyError]) -> None:
    assert code_of(made(cls)) is TABLE[cls.__name__]


def test_codes_are_those_of_grpc() -> None:
    known = {code.name: code.value[0] for code in grpc.StatusCode}

    assert {code.name: code.value for code in Code}.items() <= known.items()


def test_codes_that_leave_a_volume_uncertain_are_the_kubelets_five() -> None:
    assert {code.name for code in Code if not code.is_final} == {
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "RESOURCE_EXHAUSTED",
        "ABORTED",
        "UNAVAILABLE",
    }


def test_what_is_worth_another_try_is_never_final() -> None:
    for cls in (*error_classes().values(), *CSIError.__subclasses__()):
        if cls.retryable:
            assert not code_of(made(cls)).is_final, cls
    assert not code_of(PendingError("x")).is_final
    assert issubclass(error_classes()["AgentUnavailableError"], UnavailableError)


def test_finer_errors_of_csi_bring_their_own() -> None:
    assert code_of(ConflictError("x")) is Code.ALREADY_EXISTS


def test_what_has_no_name_is_internal() -> None:
    assert code_of(ZeroDivisionError()) is Code.INTERNAL


def test_a_full_disk_is_told_as_such_and_other_refusals_need_somebody() -> None:
    assert isinstance(system_error("writing", OSError(28, "No space")), StoreFullError)
    assert code_of(system_error("mounting", OSError(1, "denied"))) is Code.INTERNAL
    assert code_of(system_error("mounting", OSError(2, "gone"))) is Code.FAILED_PRECONDITION


def test_a_message_fits_an_event() -> None:
    assert shortened("x" * 50) == "x" * 50
    assert len(shortened("x" * 5000)) == 1000
