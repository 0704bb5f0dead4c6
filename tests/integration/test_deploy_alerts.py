"""Alerts ask for metrics that there are."""

import promql_parser
import pytest

from damselfly.metrics import DriverMetrics, Metrics
from tests.integration.deploy_chart import VARIANTS, Document, only, rendered

# What Prometheus and our relabelling add to every sample.
ADDED = {"job", "node", "container"}


def alerts() -> list[Document]:
    groups = only(rendered(VARIANTS["everything"]), "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def labels_by_metric() -> dict[str, dict[str, set[str]]]:
    table: dict[str, dict[str, set[str]]] = {"up": {}}
    for name, kind, spoken in [*Metrics().table, *DriverMetrics().table]:
        pairs = [part.partition("=") for part in spoken.split(", ") if part]
        labels = {label: set(values.split("|")) - {""} for label, _, values in pairs}
        for suffix in ("_bucket", "_count", "_sum") if kind == "histogram" else ("",):
            table[f"{name}{suffix}"] = labels
    return table


def is_known(values: set[str], matcher: promql_parser.Matcher) -> bool:
    """Whether a label can have the value; one without listed values can have any."""
    return not values or matcher.value in values


def selectors(expression: object) -> list[promql_parser.VectorSelector]:
    """Every selector within an expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        return [expression]
    found: list[promql_parser.VectorSelector] = []
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (inner := getattr(expression, name, None)) is not None:
            found += selectors(inner)
    for inner in getattr(expression, "args", []):
        found += selectors(inner)
    return found


def test_there_are_alerts_and_each_says_what_it_means() -> None:
    assert len(alerts()) >= 5
    for alert in alerts():
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert alert["annotations"].keys() == {"summary", "description"}


def test_alerts_ask_for_metrics_and_labels_that_exist() -> None:
    known = labels_by_metric()

    for alert in alerts():
        asked = selectors(promql_parser.parse(alert["expr"]))
        assert asked, alert["expr"]
        for selector in asked:
            assert selector.name in known, alert["expr"]
            labels = known[selector.name]
            for matcher in selector.matchers.matchers:
                assert matcher.name in labels.keys() | ADDED, alert["expr"]
                assert is_known(labels.get(matcher.name, set()), matcher), alert["expr"]


def test_an_expression_that_is_none_is_found() -> None:
    with pytest.raises(ValueError, match="."):
        promql_parser.parse("sum by (node (up)")
