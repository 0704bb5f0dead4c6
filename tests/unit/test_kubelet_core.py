"""The kubelet of the tests, its decisions: what was measured of the real one, in numbers."""

from pathlib import Path

import grpc
import pytest

from tests.kubelet.codes import is_final
from tests.kubelet.mounting import (
    Mounting,
    Publish,
    State,
    Unpublish,
    Wait,
)
from tests.kubelet.pod import Claimed, Inline, Pod, publish_fields, volume_id_of
from tests.kubelet.retry import Retry

Code = grpc.StatusCode


def published(*codes: Code, reconstructed: bool = False) -> Mounting:
    """A volume whose publishes ended like this, one after the other."""
    mounting = Mounting(reconstructed=reconstructed)
    for code in codes:
        mounting.publish_ended(code, now=0.0)
    return mounting


def unwanted(mounting: Mounting) -> Mounting:
    mounting.is_wanted = False
    return mounting


def test_pauses_double_from_half_a_second_to_two_minutes_and_stay_there() -> None:
    retry = Retry()
    pauses: list[float] = []
    for _ in range(11):
        retry.failed("mount", now=100.0)
        pauses.append(retry.may_at("mount") - 100.0)

    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 64, 122, 122, 122]


def test_another_operation_waits_for_nothing() -> None:
    retry = Retry()
    for _ in range(5):
        retry.failed("mount", now=0.0)

    assert retry.may_at("unmount") == 0.0
    retry.failed("unmount", now=10.0)
    assert retry.may_at("unmount") == 10.5


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_five_codes_are_not_final(code: Code) -> None:
    uncertain = {"CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"}

    assert is_final(code) == (code.name not in uncertain)


def test_a_volume_that_was_never_tried_goes_without_a_word_to_the_driver() -> None:
    mounting = unwanted(Mounting())

    assert mounting.next_action(0.0) == Wait(None)
    assert mounting.state is State.GONE


def test_a_mounted_volume_of_a_deleted_pod_is_unpublished() -> None:
    mounting = published(Code.OK)
    assert mounting.next_action(1.0) == Wait(None)

    assert unwanted(mounting).next_action(1.0) == Unpublish()


def test_after_a_code_that_is_not_final_the_deleted_pod_is_unpublished() -> None:
    mounting = unwanted(published(Code.ABORTED))

    assert mounting.next_action(0.0) == Unpublish()


def test_after_a_final_code_the_folder_goes_and_no_unpublish_comes() -> None:
    mounting = Mounting()

    assert mounting.publish_ended(Code.INTERNAL, now=0.0)
    assert unwanted(mounting).next_action(0.0) == Wait(None)
    assert mounting.state is State.GONE


def test_a_final_code_after_an_uncertain_one_ends_the_uncertainty() -> None:
    mounting = unwanted(published(Code.ABORTED, Code.INVALID_ARGUMENT))

    assert mounting.next_action(0.0) == Wait(None)
    assert mounting.state is State.GONE


def test_a_publish_is_tried_again_after_its_pause_whatever_the_code() -> None:
    for code in (Code.ABORTED, Code.INTERNAL):
        mounting = published(code)

        assert mounting.next_action(0.4) == Wait(0.5)
        assert mounting.next_action(0.5) == Publish()


def test_a_driver_that_is_not_registered_delays_and_decides_nothing() -> None:
    mounting = Mounting()

    mounting.publish_not_possible(now=1.0)

    assert mounting.next_action(1.0) == Wait(1.5)
    assert mounting.state is State.ABSENT
    assert unwanted(mounting).next_action(1.0) == Wait(None)


def test_a_volume_found_on_the_disk_is_published_once_more() -> None:
    assert Mounting(reconstructed=True).next_action(0.0) == Publish()


def test_a_failing_publish_of_a_volume_found_on_the_disk_removes_nothing() -> None:
    mounting = Mounting(reconstructed=True)

    assert not mounting.publish_ended(Code.INTERNAL, now=0.0)
    assert mounting.state is State.UNCERTAIN
    assert unwanted(mounting).next_action(0.0) == Unpublish()


def test_a_volume_found_on_the_disk_whose_pod_has_gone_is_unpublished() -> None:
    assert unwanted(Mounting(reconstructed=True)).next_action(0.0) == Unpublish()


def test_an_unpublish_is_tried_again_until_it_is_ok() -> None:
    mounting = unwanted(published(Code.OK))
    mounting.unpublish_ended(Code.INTERNAL, now=0.0)
    assert mounting.next_action(0.0) == Wait(0.5)
    assert mounting.next_action(0.5) == Unpublish()

    mounting.unpublish_ended(Code.OK, now=0.5)

    assert mounting.state is State.GONE


# --- what a publish says ---


def test_an_inline_volume_is_a_single_writer_with_an_id_of_its_own() -> None:
    volume = Inline(name="weights", attributes={"model": "file:///m/"})
    pod = Pod(uid="u1", volumes=(volume,))

    fields = publish_fields(Path("/k"), pod, volume)

    assert fields.volume_id.startswith("csi-")
    assert len(fields.volume_id) == 68
    assert fields.volume_id != volume_id_of(Pod(uid="u2", volumes=(volume,)), volume)
    assert fields.access_mode == "SINGLE_NODE_WRITER"
    assert not fields.readonly
    assert str(fields.target) == "/k/pods/u1/volumes/kubernetes.io~csi/weights/mount"
    assert fields.context["csi.storage.k8s.io/ephemeral"] == "true"


def test_a_claimed_volume_has_its_handle_and_its_first_access_mode() -> None:
    volume = Claimed(name="pv1", handle="llama", attributes={}, access_mode="ReadOnlyMany")
    pod = Pod(uid="u1", volumes=(volume,))

    fields = publish_fields(Path("/k"), pod, volume)

    assert fields.volume_id == "llama"
    assert fields.access_mode == "MULTI_NODE_READER_ONLY"
    assert fields.context["csi.storage.k8s.io/ephemeral"] == "false"


def test_pod_info_cannot_be_forged_by_attributes() -> None:
    forged = {"csi.storage.k8s.io/pod.namespace": "kube-system"}
    volume = Inline(name="weights", attributes=forged)
    pod = Pod(uid="u1", volumes=(volume,), namespace="models")

    context = publish_fields(Path("/k"), pod, volume).context

    assert context["csi.storage.k8s.io/pod.namespace"] == "models"


def test_secrets_do_not_show_in_a_repr() -> None:
    volume = Inline(name="weights", attributes={}, secrets={"token": "hf_planted"})

    assert "hf_planted" not in repr(Pod(uid="u1", volumes=(volume,)))
