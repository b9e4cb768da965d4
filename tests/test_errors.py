"""What an engine complains of, without what only its authors understand."""

from __future__ import annotations

import pytest

from datas3_ray.errors import engine_reason

RUST = ", /root/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/lance-io-13.0.0/src/object_store.rs"
STORE = (
    'Invalid input, Failed to connect to namespace: IO { source: Generic { store: "S3", source: ListRequest { source: '
    "RetryError(RetryErrorImpl { retries: 3, inner: Http(HttpError { kind: Connect, "
    'source: Os { code: 111, kind: ConnectionRefused, message: "Connection refused" } }) }) } }, '
    f'location: Location {{ file: "{RUST[2:]}", line: 1506, column: 92 }} }}'
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            f"Invalid user input: Schema error: No field named regon. Did you mean 'region'?.{RUST}:839:33",
            "No field named regon. Did you mean 'region'?",
        ),
        (
            'Schema error: No field named "N". Column names are case sensitive. You can use double quotes to refer '
            'to the ""N"" column or set the datafusion.sql_parser.enable_ident_normalization configuration. Valid '
            f"fields are id, n, _rowid, _row_last_updated_at_version, _distance.{RUST}:1:1",
            'No field named "N". Valid fields are id, n.',
        ),
        (
            "Error parsing statement: SELECT 1 FROM t WHERE x = (sql parser error: Expected: an expression, found: EOF)"
            f"{RUST}:109:22",
            "Expected: an expression, found: EOF.",
        ),
        (
            f"lance error: LanceError(IO): Generic S3 error: Failed to resolve region for bucket 'b'{RUST}:319:13",
            "Generic S3 error: Failed to resolve region for bucket 'b'.",
        ),
        (STORE, "Failed to connect to namespace: Connection refused."),
        ("two\n  lines", "two lines."),
        ("", "ValueError."),
    ],
)
def test_an_engine_s_internals_are_left_out(said: str, reason: str) -> None:
    assert engine_reason(ValueError(said)) == reason
