"""What a status code means to the kubelet: whether the driver may have left something behind.

Only the five codes below leave a volume *uncertain*: something may still go on, or be mounted, so
that the kubelet unpublishes when the pod goes. Every other code is *final*: the kubelet believes
that nothing is there, removes the folder that it made, and never says NodeUnpublishVolume.
"""

import grpc

NOT_FINAL = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)


def is_final(code: grpc.StatusCode) -> bool:
    """The driver says with it that nothing was left behind."""
    return code not in NOT_FINAL
