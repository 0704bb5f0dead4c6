"""Metrics: named by the rules, complete from the start, and each agent's own."""

import re

from prometheus_client.parser import text_string_to_metric_families

from damselfly.metrics import SOURCES, Metrics

BASE_UNITS = ("bytes", "seconds", "ratio")
NOT_BASE_UNITS = ("ms", "milliseconds", "minutes", "kb", "kib", "mb", "mib", "gb", "gib", "percent")


def test_names_follow_the_rules() -> None:
    for name, kind, _ in Metrics().table:
        words = name.split("_")
        assert re.fullmatch(r"damselfly(_[a-z]+)+", name), name
        assert (kind == "counter") == (words[-1] == "total"), name
        assert not set(words) & set(NOT_BASE_UNITS), name
        if kind == "histogram":
            assert words[-1] in BASE_UNITS, name


def test_no_label_could_be_a_digest_a_ref_or_a_peer() -> None:
    for name, _, labels in Metrics().table:
        for label in filter(None, labels.split(", ")):
            assert "=" in label or name == "damselfly_build_info", name


def test_the_table_is_what_is_exposed() -> None:
    metrics = Metrics()

    exposed = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(metrics.render().decode())
    }

    assert exposed == {name for name, _, _ in metrics.table}


def test_every_label_value_is_there_from_the_start() -> None:
    text = Metrics().render().decode()

    for source in SOURCES:
        assert f'damselfly_fetched_bytes_total{{source="{source}"}} 0.0' in text


def test_chunks_are_counted_by_source() -> None:
    metrics = Metrics()

    metrics.chunk_fetched("peer", 4096, 0.02)
    metrics.chunk_served(4096)

    text = metrics.render().decode()
    assert 'damselfly_chunks_fetched_total{source="peer"} 1.0' in text
    assert 'damselfly_fetched_bytes_total{source="peer"} 4096.0' in text
    assert 'damselfly_chunk_fetch_duration_seconds_count{source="peer"} 1.0' in text
    assert "damselfly_served_bytes_total 4096.0" in text


def test_two_agents_do_not_add_up() -> None:
    one, other = Metrics(), Metrics()

    one.chunk_served(1)

    assert "damselfly_chunks_served_total 0.0" in other.render().decode()
