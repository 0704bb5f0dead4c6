"""The admission policy, evaluated: what a token of the agents may do to a node, and what not."""

import copy
from collections.abc import Callable
from typing import Any, cast

import celpy
import pytest
from celpy import celtypes
from celpy.adapter import json_to_cel

from damselfly.csi.taint import patch_of
from tests.integration.deploy_chart import Document, only, rendered

TAINT = {"key": "csi.damselfly.dev/agent-not-ready", "effect": "NoSchedule"}
OTHER = {"key": "nvidia.com/gpu", "effect": "NoSchedule", "value": "present"}
NODE: Document = {
    "metadata": {"name": "node-7", "labels": {"zone": "a"}, "annotations": {"owner": "ml"}},
    "spec": {"providerID": "cloud://7", "podCIDR": "10.1.0.0/24", "taints": [TAINT, OTHER]},
}
WHO = "system:serviceaccount:damselfly:damselfly"


def evaluate(expression: str, facts: Document) -> Any:
    environment: Any = celpy.Environment()
    program = environment.program(environment.compile(expression))
    return program.evaluate(cast(Any, json_to_cel(cast(Any, facts))))


def objections(after: Document, before: Document = NODE, token_node: str = "node-7") -> list[str]:
    """What the policy says to a change; nothing if it lets it through."""
    policy = only(rendered({"startupTaint": {"enabled": True}}), "ValidatingAdmissionPolicy")[
        "spec"
    ]
    facts: Document = {
        "object": after,
        "oldObject": before,
        "request": {
            "userInfo": {
                "username": WHO,
                "extra": {"authentication.kubernetes.io/node-name": [token_node]}
                if token_node
                else {},
            }
        },
    }
    (condition,) = policy["matchConditions"]
    assert evaluate(condition["expression"], facts)
    variables: Document = {}
    for variable in policy["variables"]:
        # As Kubernetes has it, what a variable is made of is an object of the request.
        value = evaluate(variable["expression"], facts)
        variables[variable["name"]] = _plain(value)
    facts["variables"] = variables
    return [
        validation["message"]
        for validation in policy["validations"]
        if not evaluate(validation["expression"], facts)
    ]


def _plain(value: Any) -> Any:
    match value:
        case celtypes.ListType():
            items: list[Any] = value
            return [_plain(item) for item in items]
        case celtypes.MapType():
            pairs: dict[Any, Any] = value
            return {str(key): _plain(item) for key, item in pairs.items()}
        case _:
            return str(value)


def without_any_taint(node: Document) -> None:
    del node["spec"]["taints"]


def with_another_taint(node: Document) -> None:
    node["spec"]["taints"].append({"key": "mine", "effect": "NoExecute"})


def with_another_effect(node: Document) -> None:
    node["spec"]["taints"][1] = {**OTHER, "effect": "NoExecute"}


def with_another_label(node: Document) -> None:
    node["metadata"]["labels"]["zone"] = "b"


def without_labels(node: Document) -> None:
    del node["metadata"]["labels"]


def with_another_annotation(node: Document) -> None:
    node["metadata"]["annotations"]["owner"] = "me"


def with_finalizers(node: Document) -> None:
    node["metadata"]["finalizers"] = ["mine"]


def cordoned(node: Document) -> None:
    node["spec"]["unschedulable"] = True


def with_another_provider(node: Document) -> None:
    node["spec"]["providerID"] = "cloud://8"


def patched(before: Document) -> Document:
    """The node after the driver's own patch."""
    steps = patch_of(before, TAINT["key"])
    assert steps is not None
    test, replace = steps
    assert test["value"] == before["spec"]["taints"]
    after = copy.deepcopy(before)
    after["spec"]["taints"] = replace["value"]
    return after


def test_the_driver_takes_its_taint_off_its_node() -> None:
    after = patched(NODE)

    assert after["spec"]["taints"] == [OTHER]
    assert objections(after) == []


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_last_taint_may_go_too(is_kept: bool) -> None:
    before = copy.deepcopy(NODE)
    before["spec"]["taints"] = [TAINT]

    after = patched(before)
    if not is_kept:  # the API server leaves empty lists out
        del after["spec"]["taints"]

    assert objections(after, before) == []


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        (without_any_taint, "only their own taint"),
        (with_another_taint, "add or change a taint"),
        (with_another_effect, "add or change a taint"),
        (with_another_label, "labels"),
        (without_labels, "labels"),
        (with_another_annotation, "annotations"),
        (with_finalizers, "finalizers"),
        (cordoned, "unschedulable"),
        (with_another_provider, "providerID"),
    ],
)
def test_nothing_else_may_change(change: Callable[[Document], None], objection: str) -> None:
    after = copy.deepcopy(NODE)

    change(after)

    assert any(objection in said for said in objections(after))


@pytest.mark.parametrize("token_node", ["node-8", ""])
def test_no_other_node_may_be_changed(token_node: str) -> None:
    after = patched(NODE)

    assert objections(after, token_node=token_node) == [
        "the agents may change only the node that they run on"
    ]


def test_it_is_about_the_agents_and_denies() -> None:
    objects = rendered({"startupTaint": {"enabled": True}})
    policy = only(objects, "ValidatingAdmissionPolicy")
    binding = only(objects, "ValidatingAdmissionPolicyBinding")["spec"]

    (condition,) = policy["spec"]["matchConditions"]
    facts = {"request": {"userInfo": {"username": "system:node:node-7"}}}
    assert not evaluate(condition["expression"], facts)
    assert policy["spec"]["failurePolicy"] == "Fail"
    assert binding == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
