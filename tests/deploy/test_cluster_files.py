"""compose.cluster.yaml, the manifests for Kubernetes, the unit for systemd: each held to its own linter and to ours."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentwrit._version import __version__
from agentwrit.broker.config import Config, load, unknown_variables
from agentwrit.broker.server import GRACE_SECONDS
from tests.support import PLAIN, BrokerProcess

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((ROOT / "compose.cluster.yaml").read_text())
KUBERNETES = ROOT / "deploy/kubernetes"
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((KUBERNETES / name).read_text())
]
UNIT = ROOT / "deploy/systemd/agentwrit.service"


def passes(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def manifest(kind: str) -> dict[str, Any]:
    [found] = [item for item in MANIFESTS if item["kind"] == kind]
    return found


def pod(kind: str) -> dict[str, Any]:
    return dict(manifest(kind)["spec"]["template"]["spec"])


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


def test_all_yaml_is_as_yamllint_wants_it() -> None:
    passes(
        BIN / "yamllint", "--strict", "--config-file", ROOT / ".yamllint.yaml", *ROOT.glob("*.yaml"), ROOT / "deploy"
    )


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cluster.yaml"])
def test_compose_files_are_what_the_compose_specification_allows(name: str) -> None:
    passes(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / name)


def test_manifests_are_what_kubernetes_knows_and_nothing_else() -> None:
    passes(BIN / "kubernetes-validate", "--strict", *(KUBERNETES / name for name in KUSTOMIZATION["resources"]))


def test_every_manifest_is_applied() -> None:
    assert {*KUSTOMIZATION["resources"], "kustomization.yaml"} == {file.name for file in KUBERNETES.iterdir()}
    assert KUSTOMIZATION["images"] == [{"name": "agentwrit", "newTag": __version__}]
    assert manifest("Job")["metadata"]["name"] == f"agentwrit-migration-{__version__}"


# -- compose --------------------------------------------------------------------------------------


def brokers() -> list[dict[str, Any]]:
    return [service for name, service in COMPOSE["services"].items() if name.startswith("broker-")]


def test_three_brokers_share_a_database_and_only_the_proxy_is_reached() -> None:
    assert len(brokers()) == 3
    proxied = (ROOT / "deploy/caddy/Caddyfile").read_text()
    for name, service in COMPOSE["services"].items():
        assert ("ports" in service) == ("outside" in service["networks"]) == (name == "proxy")
        assert name == "postgres" or name == "proxy" or f"{name}:8080" in proxied
    assert COMPOSE["services"]["proxy"]["ports"] == ["127.0.0.1:8080:8080"]
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_every_container_is_confined() -> None:
    for service in COMPOSE["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        for mounted in service.get("volumes", []):
            source, *_ = mounted.split(":")
            assert source in COMPOSE["volumes"] or (mounted.endswith(":ro") and (ROOT / source).is_file())


def test_no_secret_has_a_default_and_no_setting_is_unknown() -> None:
    for broker in brokers():
        assert broker["image"] == f"agentwrit:{__version__}"
        settings = broker["environment"]
        assert unknown_variables(settings) == []
        for name in ("ADMIN_SECRET", "MASTER_KEY", "DATABASE_URL"):
            assert re.search(r"\$\{[A-Z_]+:\?", settings[f"AGENTWRIT_{name}"]), name
        drain = int(settings["AGENTWRIT_DRAIN_SECONDS"])
        assert 0 < drain + GRACE_SECONDS < seconds(broker["stop_grace_period"])
        [network] = COMPOSE["networks"]["inside"]["ipam"]["config"]
        assert settings["AGENTWRIT_TRUSTED_PROXIES"] == network["subnet"]


# -- Kubernetes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_pods_are_restricted(kind: str) -> None:
    """What Kubernetes' Pod Security Standards call restricted, a file system that is read only, and no token."""
    spec = pod(kind)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert f"USER {spec['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "limits" in container["resources"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert all({"secret", "emptyDir"} & set(volume) for volume in spec["volumes"])
    labels = manifest("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_secrets_come_as_a_file_and_never_as_variables(kind: str) -> None:
    spec = pod(kind)
    [container] = spec["containers"]
    assert "env" not in container
    assert container["envFrom"] == [{"configMapRef": {"name": manifest("ConfigMap")["metadata"]["name"]}}]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "secrets"]
    assert container["args"][-2:] == ["--config", f"{mount['mountPath']}/agentwrit.toml"]
    assert "Secret" not in {item["kind"] for item in MANIFESTS}


def test_the_settings_of_the_manifests_are_settings() -> None:
    settings = manifest("ConfigMap")["data"]
    assert unknown_variables(settings) == []
    config = load(settings)
    assert config.metrics_host == ("0.0.0.0",)
    [container] = pod("Deployment")["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": Config().port, "metrics": config.metrics_port}


def test_agents_in_the_cluster_prove_their_keys_by_the_services_name() -> None:
    service = manifest("Service")["metadata"]
    inside = f"http://{service['name']}.{service['namespace']}"
    known = load(manifest("ConfigMap")["data"]).public_url
    assert {inside, f"{inside}.svc", f"{inside}.svc.cluster.local"} <= set(known)
    assert manifest("Service")["spec"]["ports"][0]["port"] == 80
    assert f"http://{service['name']}" not in known  # in a client's namespace that is a service of the client's


def test_a_pod_is_ended_after_it_has_drained_and_not_before() -> None:
    drain = load(manifest("ConfigMap")["data"]).drain_seconds
    spec = pod("Deployment")
    [container] = spec["containers"]
    readiness = container["readinessProbe"]
    assert readiness["httpGet"]["path"] == "/readyz"
    assert readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"] <= drain
    assert drain + GRACE_SECONDS < spec["terminationGracePeriodSeconds"]
    # Neither of them is about the database: a restart would not mend it.
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/livez"


def test_whatever_selects_brokers_finds_them_and_not_the_migration() -> None:
    labels = manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Job")["spec"]["template"]["metadata"]["labels"] != labels
    target = manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", manifest("Deployment")["metadata"]["name"])
    assert "replicas" not in manifest("Deployment")["spec"], "every apply would undo what the autoscaler did"
    for container in [*pod("Deployment")["containers"], *pod("Job")["containers"]]:
        assert container["image"] == "agentwrit"


def test_the_network_is_closed_but_for_what_is_needed() -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in MANIFESTS if item["kind"] == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in policies["to-brokers"]["ingress"]:
        assert rule["from"]
        assert rule["ports"]
    allowed = {port["port"] for rule in policies["to-database"]["egress"] for port in rule["ports"]}
    assert allowed == {53, 5432}


# -- systemd --------------------------------------------------------------------------------------


def directives() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_is_one_that_systemd_takes_and_finds_safe(tmp_path: Path) -> None:
    given = directives()
    assert given["DynamicUser"] == ["yes"]
    assert given["CapabilityBoundingSet"] == [""]
    [stop] = given["TimeoutStopSec"]
    assert int(stop) > GRACE_SECONDS
    if shutil.which("systemd-analyze") is None:
        return  # a machine without systemd: what it says of the unit cannot be had there
    # What is started is looked for, so it is the one that is installed here.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/agentwrit/bin/", f"{BIN}/"))
    passes("systemd-analyze", "verify", unit)
    # In tenths, from 0 to 100: what systemd calls OK ends at 49.
    passes("systemd-analyze", "security", "--offline=true", "--threshold=15", unit)


def test_what_the_unit_starts_serves_with_secrets_from_the_credential(tmp_path: Path) -> None:
    given = directives()
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    [credential] = given["LoadCredential"]
    name, _, source = credential.partition(":")
    assert Path(source).name == name
    (credentials / name).write_text(f'master_key = "{"5a" * 32}"\n')
    [start] = given["ExecStart"]
    program, serve, *arguments = [part.replace("%d", str(credentials)) for part in start.split()]
    assert (program, serve) == ("/opt/agentwrit/bin/agentwrit", "serve")
    settings = dict(line.replace("%S", str(tmp_path)).split("=", 1) for line in given["Environment"])
    assert unknown_variables(settings) == []
    directory = Path(settings["AGENTWRIT_DATA_DIR"])
    with BrokerProcess(directory, arguments=arguments, verify=PLAIN, **settings) as broker:
        assert broker.is_valid(broker.app().agent()["access_token"])
        assert not (directory / "master.key").exists()
        environment = Path(f"/proc/{broker.pid}/environ")
        assert not environment.exists() or b"5a5a" not in environment.read_bytes()


def test_the_exit_code_of_wrong_settings_is_the_one_that_is_not_tried_again(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "AGENTWRIT_DATA_DIR": str(tmp_path), "AGENTWRIT_PORT": "none"}
    done = subprocess.run([BIN / "agentwrit", "serve"], env=environment, capture_output=True, timeout=60)
    assert directives()["RestartPreventExitStatus"] == [str(done.returncode)]
