"""Settings that change what a running broker does."""

import json
import socket
from pathlib import Path

import httpx2

from tests.support import PLAIN, BrokerProcess, problem


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_metrics_move_to_a_port_of_their_own(tmp_path: Path) -> None:
    port = free_port()
    with BrokerProcess(tmp_path / "data", AGENTWRIT_METRICS_PORT=str(port)) as broker:
        problem(broker.http.get("/v1/metrics"), 404, "not_found")
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as metrics:
            assert "agentwrit_http_requests_total" in metrics.get("/v1/metrics").text
            problem(metrics.get("/v1/health"), 404, "not_found")


def test_names_and_times_reach_the_tokens(tmp_path: Path) -> None:
    settings = {
        "AGENTWRIT_ISSUER": "https://broker.example",
        "AGENTWRIT_AUDIENCE": "orders, billing",
        "AGENTWRIT_TRUST_DOMAIN": "example.org",
        "AGENTWRIT_DEFAULT_TTL": "60",
        "AGENTWRIT_APP_TOKEN_TTL": "120",
        "AGENTWRIT_ADMIN_TOKEN_TTL": "30",
    }
    with BrokerProcess(tmp_path / "data", verify=PLAIN, **settings) as broker:
        app = broker.app()
        agent = app.agent()
        claims = broker.validate(agent["access_token"])["claims"]
        assert agent["agent_id"].startswith("spiffe://example.org/agent/")
        assert (claims["iss"], claims["aud"]) == ("https://broker.example", ["orders", "billing"])
        assert agent["expires_in"] == 60
        assert app.login().json()["expires_in"] == 120
        assert broker.http.post("/v1/token/renew").status_code == 401
        operator = broker.validate(broker.admin()["authorization"].removeprefix("Bearer "))["claims"]
        assert operator["exp"] - operator["iat"] == 30
        assert operator["aud"] == ["https://broker.example"]


def test_behind_a_tls_proxy_browsers_are_told_to_stay_with_tls(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PUBLIC_URL="https://broker.example.com/") as broker:
        assert "strict-transport-security" in broker.http.get("/livez").headers


def test_a_file_sets_what_no_variable_does(tmp_path: Path) -> None:
    file = tmp_path / "agentwrit.toml"
    file.write_text('issuer = "from-the-file"\ntrust_domain = "file.example"\n')
    with BrokerProcess(
        tmp_path / "data", arguments=["--config", str(file)], AGENTWRIT_TRUST_DOMAIN="variable.example"
    ) as broker:
        agent = broker.app().agent()
        assert broker.validate(agent["access_token"])["claims"]["iss"] == "from-the-file"
        assert "variable.example" in agent["agent_id"]


def test_logs_are_json_with_the_request_id_and_without_the_path(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        broker.http.get("/v1/admin/apps/a-path-of-a-caller", headers={"x-request-id": "seen-in-the-log"})
        broker.stop()
        lines = [json.loads(line) for line in broker.log.read_text().splitlines()]
    [request] = [line for line in lines if line.get("request_id") == "seen-in-the-log"]
    assert request["route"] == "/v1/admin/apps/{app_id}"
    assert (request["method"], request["status"], request["address"]) == ("GET", 401, "127.0.0.1")
    assert "a-path-of-a-caller" not in broker.log.read_text()
    assert lines[-1]["event"] == "stopped"
