"""Prompts with every hard case, as MLflow's own calls make them and as people do by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.compare_models import PROMPT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

DELETED = (1, 3, 7, 8)
EXPERIMENT_IDS = "_mlflow_experiment_ids"


def seed_prompts(client: MlflowClient) -> None:
    """Twelve versions with gaps, chat, response format, model config, one without versions."""
    linked = [client.create_experiment(f"linked {number}") for number in range(12)]
    for number in range(1, 13):
        client.register_prompt(
            "greet.user",
            f"Hello {{{{name}}}}, {number} ✓\n",
            f"commit {number}" if number % 2 else None,
            {"n": str(number), "long": "v" * 900},
        )
    for number in DELETED:
        client.delete_prompt_version("greet.user", str(number))
    client.set_prompt_alias("greet.user", "production", 10)
    client.set_prompt_alias("greet.user", "also", 10)
    client.set_prompt_alias("greet.user", "old", 2)
    client.set_prompt_tag("greet.user", "team", "a")
    client.set_prompt_tag("greet.user", EXPERIMENT_IDS, f",{linked[1]},{linked[11]},")
    client.register_prompt(
        "chat",
        [{"role": "system", "content": "Be {{mood}}"}, {"role": "user", "content": "{{q}}"}],
        response_format={"type": "object", "properties": {"a": {"type": "string"}}},
        model_config={"model_name": "m", "temperature": 0.25, "max_tokens": 7},
    )
    client.register_prompt("chat", [{"role": "user", "content": "{{q}}?"}])
    client.register_prompt("versions-gone", "gone")
    client.delete_prompt_version("versions-gone", "1")
    client.create_registered_model("a model")


def seed_by_hand(client: MlflowClient) -> None:
    """What only the registry's own calls can make: no template, one that is no text, no tag."""
    registry = client._get_registry_client()
    client.register_prompt("by-hand", "fine")
    no_template = {PROMPT_TAG: "true", "note": "no template"}
    registry.create_model_version("by-hand", "dummy-source", tags=no_template)
    broken = {**no_template, "mlflow.prompt.text": "[{", "_mlflow_prompt_type": "chat"}
    registry.create_model_version("by-hand", "dummy-source", tags=broken)
    client.register_prompt("by-hand", "no tag")
    registry.delete_model_version_tag("by-hand", "4", PROMPT_TAG)
    client.register_prompt("by-hand", "last")
