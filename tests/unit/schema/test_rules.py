"""The registry of rules."""

from __future__ import annotations

import re

import pytest

from mlflow_exim_plugin.schema.rules import RULES, Finding

# Codes are append-only: one that was published is never taken away or renamed.
PUBLISHED = """
E001 path_relative E002 path_characters E003 path_edges E004 path_device_name
E005 path_normalization E006 path_length E007 path_collision E008 path_file_and_folder
E009 text_encoding E010 seek_table_missing E011 seek_table_malformed E012 frame_sizes
E013 frame_limit E014 frame_header E015 frame_damaged E016 seek_table_checksum
E017 footer_malformed E018 format_name E019 version_unsupported E020 feature_unsupported
E021 algorithm E022 base_directory E023 tar_bytes E024 member_count E025 index_malformed
E026 index_row E027 root_digest E028 manifest_syntax E029 member_digest E030 manifest_coverage
E031 member_missing E032 bag_declaration E033 payload_oxum E034 bag_fetch E035 tar_header
E036 tar_member_type E037 tar_link E038 tar_duplicate E039 tar_padding W001 tar_metadata
W002 frame_granularity E050 json_invalid E051 document_field E052 identity E053 metrics_range
E054 artifact_entry E055 content_digest E056 listing E057 header E058 counts E059 metrics_file
E060 metrics_order E061 metrics_digest E062 trace_table E063 trace_rows E064 trace_digest
E065 expansion E066 failures_named W020 unnamed_member W021 failures
"""


@pytest.mark.parametrize(("code", "slug"), re.findall(r"(\w\d+) (\w+)", PUBLISHED))
def test_published_codes_stay(code: str, slug: str) -> None:
    assert RULES[code].slug == slug


def test_errors_are_told_from_warnings() -> None:
    assert RULES["E001"].is_error
    assert not RULES["W001"].is_error


def test_finding_is_one_line_with_its_code() -> None:
    assert str(Finding("E001", "data/x", "is absolute")) == "E001 data/x: is absolute"
