"""The tables and columns of MLflow's databases that the kinds are made of, up to MLflow 3.18.

What a database has besides them is carried by nobody, and so it is named.
"""

from __future__ import annotations

__all__ = ["MAPPED", "NOT_CARRIED"]

NOT_CARRIED = frozenset(
    {
        "alembic_version",
        "job_locks",
        "jobs",
        "scheduler_leases",
        "sql_assessment_daily_rollups",
        "sql_span_cost_daily_rollups",
        "sql_trace_metric_daily_rollups",
        "sql_trace_rollup_rebuild_queue",
    }
)
"""Tables of which an archive holds nothing: work of one server, and what is counted from others."""

_COLUMNS = """
assessments: assessment_id trace_id name assessment_type value error created_timestamp
  last_updated_timestamp experiment_id trace_timestamp_ms aggregate_value is_numeric_value
  source_type source_id run_id span_id rationale overrides valid assessment_metadata
budget_policies: budget_policy_id budget_unit budget_amount duration_unit duration_value
  target_scope budget_action created_by created_at last_updated_by last_updated_at workspace
  target_value
datasets: dataset_uuid experiment_id name digest dataset_source_type dataset_source dataset_schema
  dataset_profile
endpoint_bindings: endpoint_id resource_type resource_id created_at created_by last_updated_at
  last_updated_by display_name
endpoint_model_mappings: mapping_id endpoint_id model_definition_id weight linkage_type
  fallback_order created_by created_at
endpoint_tags: key value endpoint_id
endpoints: endpoint_id name created_by created_at last_updated_by last_updated_at routing_strategy
  fallback_config_json experiment_id usage_tracking workspace
entity_associations: association_id source_type source_id destination_type destination_id
  created_time
evaluation_dataset_records: dataset_record_id dataset_id inputs outputs expectations tags source
  source_id source_type created_time last_update_time created_by last_updated_by input_hash
evaluation_dataset_tags: dataset_id key value
evaluation_datasets: dataset_id workspace name schema profile digest created_time last_update_time
  created_by last_updated_by
experiment_tags: key value experiment_id
experiments: experiment_id name workspace artifact_location lifecycle_stage creation_time
  last_update_time
guardrail_configs: endpoint_id guardrail_id execution_order created_by created_at workspace
guardrails: guardrail_id name scorer_id scorer_version stage action action_endpoint_id created_by
  created_at last_updated_by last_updated_at workspace
input_tags: input_uuid name value
inputs: input_uuid source_type source_id destination_type destination_id step
issue_categories: issue_id category_hash category
issues: issue_id experiment_id name description status severity root_causes source_run_id
  categories created_timestamp last_updated_timestamp created_by last_seen_timestamp last_updated_by
  metadata
label_schemas: schema_id experiment_id name type instruction enable_comment input_type
  input_config created_by created_time last_update_time is_default
latest_metrics: key value timestamp step is_nan run_uuid
logged_model_metrics: model_id metric_name metric_timestamp_ms metric_step metric_value
  experiment_id run_id dataset_uuid dataset_name dataset_digest
logged_model_params: model_id experiment_id param_key param_value
logged_model_tags: model_id experiment_id tag_key tag_value
logged_models: model_id experiment_id name artifact_location creation_timestamp_ms
  last_updated_timestamp_ms status lifecycle_stage model_type source_run_id status_message
mcp_access_endpoints: id workspace server_name server_version server_alias url transport_type
  created_by last_updated_by created_at last_updated_at
mcp_server_aliases: workspace name alias version
mcp_server_tags: workspace name key value
mcp_server_version_tags: workspace name version key value
mcp_server_versions: workspace name version version_major version_minor version_patch
  version_prerelease_sort_key server_json status tools source connect_options created_by
  last_updated_by created_at last_updated_at
mcp_servers: workspace name display_name description icons created_by last_updated_by created_at
  last_updated_at
metrics: key value timestamp step is_nan run_uuid
model_definitions: model_definition_id name secret_id provider model_name created_by created_at
  last_updated_by last_updated_at workspace
model_version_tags: workspace name version key value
model_versions: workspace name version creation_time last_updated_time description user_id
  current_stage source storage_location run_id run_link status status_message
online_scoring_configs: online_scoring_config_id scorer_id sample_rate experiment_id filter_string
params: key value run_uuid
registered_model_aliases: workspace name alias version
registered_model_tags: workspace name key value
registered_models: workspace name creation_time last_updated_time description
review_queue_items: queue_id item_type item_id status completed_by completed_time_ms
  creation_time_ms last_update_time_ms
review_queue_label_schemas: queue_id schema_id
review_queue_users: queue_id user_id
review_queues: queue_id experiment_id name name_key queue_type created_by creation_time_ms
  last_update_time_ms
runs: run_uuid name source_type source_name entry_point_name user_id status start_time end_time
  deleted_time source_version lifecycle_stage artifact_uri experiment_id
scorer_versions: scorer_id scorer_version serialized_scorer creation_time
scorers: experiment_id scorer_name scorer_id
secrets: secret_id secret_name encrypted_value wrapped_dek kek_version masked_value provider
  auth_config description created_by created_at last_updated_by last_updated_at workspace
skill_aliases: workspace organization name alias version
skill_tags: workspace organization name key value
skill_version_tags: workspace organization name version key value
skill_versions: workspace organization name version source_type source ref subpath digest status
  created_by last_updated_by created_at last_updated_at
skills: workspace organization name description icons search_text created_by last_updated_by
  created_at last_updated_at
span_metrics: trace_id span_id key value
spans: trace_id experiment_id span_id parent_span_id name type status start_time_unix_nano
  end_time_unix_nano duration_ns content input_cost output_cost total_cost model_name model_provider
tags: key value run_uuid
trace_info: request_id experiment_id timestamp_ms execution_time_ms status client_request_id
  request_preview response_preview db_payload_generation trace_name session_id input_tokens
  output_tokens total_tokens cache_read_input_tokens cache_creation_input_tokens
  cache_creation_input_tokens_above_1hr input_cost output_cost total_cost
trace_metrics: request_id key value
trace_request_metadata: key value request_id
trace_tags: key value request_id
webhook_events: webhook_id entity action
webhooks: workspace webhook_id name description url status secret creation_timestamp
  last_updated_timestamp deleted_timestamp
workspaces: name description default_artifact_root trace_archival_location
  trace_archival_retention
"""

MAPPED: dict[str, frozenset[str]] = {
    table: frozenset(columns.split())
    for table, _, columns in (
        entry.partition(":") for entry in _COLUMNS.replace("\n  ", " ").strip().splitlines()
    )
}
"""Columns by table."""
