"""The manifests say what they must; `make audit` holds them against Kubernetes' own schemas."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.acl import ACCESS
from shared.config import SHARED_SERVICES, load

_FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def _documents() -> Iterator[dict[str, Any]]:
    for path in _FOLDER.glob("*.yaml"):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def _of(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in _documents() if one["kind"] == kind}


def test_every_file_is_part_of_the_base() -> None:
    listed = yaml.safe_load((_FOLDER / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in _FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == there


def test_every_service_is_a_stateful_set_with_a_service_and_a_budget() -> None:
    names = {*ACCESS, "redis"}
    assert (
        set(_of("StatefulSet")) == set(_of("Service")) == set(_of("PodDisruptionBudget")) == names
    )


def test_every_container_is_confined_and_probed() -> None:
    for name, one in _of("StatefulSet").items():
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["automountServiceAccountToken"] is False, name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), name
        assert container["resources"]["limits"]["memory"], name
        assert container["args"] == (["bus"] if name == "redis" else [name])
        values = [variable.get("value", "") for variable in container.get("env", ())]
        assert not [v for v in values if v.startswith("redis://") and ":" in v[8:].split("@")[0]]


def test_every_container_can_run_itb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kubectl exec redis-0 -- itb halt` reads the config beside what the server was told."""
    secret = tmp_path / "secret"
    secret.write_text("a password")
    for one in _of("StatefulSet").values():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        with monkeypatch.context() as patch:
            for variable in container.get("env", ()):
                name, value = variable["name"], variable.get("value")
                is_secret = name.endswith("_FILE") and "DASHBOARD" not in name
                if value is not None:
                    patch.setenv(name, str(secret) if is_secret else value)
            load()


def test_each_service_gets_the_password_of_its_own_user_as_a_file() -> None:
    for name, one in _of("StatefulSet").items():
        volumes = {v["name"]: v for v in one["spec"]["template"]["spec"]["volumes"]}
        assert volumes["keys"]["secret"]["secretName"] == f"keys-{name}"
        mounts = one["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        by_name = {mount["name"]: mount for mount in mounts}
        assert by_name["keys"]["readOnly"] is True
        if "models" in by_name:
            assert by_name["models"]["readOnly"] is True, f"{name} may write models"


def test_nothing_is_let_in_or_out_but_what_must() -> None:
    policies = _of("NetworkPolicy")
    assert policies["nothing"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    out = {
        name
        for name, one in _of("StatefulSet").items()
        if one["spec"]["template"]["metadata"]["labels"].get("itb/internet") == "true"
    }
    assert out == {"collector", "notifier", "trader"}


def test_only_services_that_share_symbols_have_shards_in_the_settings() -> None:
    text = (_FOLDER / "settings.env").read_text()
    assert all(f'"{name}"' in text for name in SHARED_SERVICES)
    assert "ITB_TRADER__MODE=observe" in text  # a cluster trades only when somebody says so
