"""Whatever a file holds, loading it either works or says why not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kafka_assets.config import load_config
from kafka_assets.config.options import OPTIONS, SELECTIONS
from kafka_assets.errors import ConfigInvalidError

WORDS = st.sampled_from(
    """
    earliest latest timestamp orders raw json 5s 1MiB ${A} ${B:-x} $$ ${ 2026-01-01T00:00:00Z 0 1:30
    = << *a &a !x ~ [ .inf
    """.split()  # noqa: SIM905 (words read better without their quotes)
) | st.sampled_from(["", "\ud800", "\0"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.datetimes()
    | st.dates()
    | st.binary(max_size=4)
    | WORDS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.integers(0, 9) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from([*SELECTIONS, *OPTIONS])
STREAMS = st.dictionaries(KEYS | st.text(max_size=4), VALUES, max_size=6)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "kafka": st.dictionaries(
            st.sampled_from(["bootstrap.servers", "client.id", "debug", "sasl.password"]) | WORDS,
            SCALARS,
            max_size=3,
        )
        | VALUES,
        "warehouse": st.dictionaries(st.sampled_from(["uri", "lock_timeout", "max_staged_bytes"]), SCALARS)
        | VALUES,
        "defaults": STREAMS | VALUES,
        "streams": st.dictionaries(
            st.sampled_from(["a", "B", "b", "9"]) | WORDS, STREAMS | VALUES, max_size=3
        )
        | VALUES,
    },
)
MARKS = st.lists(
    st.sampled_from(
        [*"{}[]:,-?&*!|>'\"%@`#\n\t ~=$", "<<", "kafka", "streams", "a", "\\U00110000", "!!int", "--- "]
    ),
    max_size=30,
)


def load_any(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "streams.yaml"
        file.write_bytes(content)
        refused = None
        try:
            shown = repr(load_config(file, environ={"A": "\udcff5"}))
        except ConfigInvalidError as error:
            refused, shown = error, str(error)
    shown.encode()
    assert refused is None or refused.problems or "UTF-8" in shown


@given(FILES)
@settings(max_examples=300, deadline=None)
def test_any_document_loads_or_is_refused(document):
    """No YAML document, however it is shaped, raises anything but ConfigInvalidError."""
    load_any(yaml.safe_dump(document, allow_unicode=False).encode())


@given(MARKS)
@settings(max_examples=300, deadline=None)
@example(["? ", "a"])
@example(["<<: [", "*a", "]"])
def test_any_text_loads_or_is_refused(parts):
    """No text made of YAML's own signs raises anything but ConfigInvalidError."""
    load_any("".join(parts).encode())


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_refused(content):
    """No bytes raise anything but ConfigInvalidError."""
    load_any(content)
