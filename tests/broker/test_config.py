"""Settings: read, checked, and a bad one named in one line."""

from pathlib import Path

import pytest

from agentwrit.broker.config import Config, doubts, load, unknown_variables
from agentwrit.domain.errors import ConfigurationError


def test_without_any_setting_the_defaults_hold() -> None:
    settings = load({"HOME": "/", "PATH": "/bin"})
    assert settings == Config()
    assert (settings.host, settings.port, settings.issuer) == (("127.0.0.1",), 8080, "agentwrit")
    assert settings.trust_domain == "agentwrit.local"
    assert (settings.default_ttl, settings.max_ttl, settings.max_lifetime) == (300, 86_400, 86_400)
    assert (settings.app_token_ttl, settings.admin_token_ttl) == (1800, 300)
    assert settings.default_audience == ("agentwrit",)


def test_a_variable_outranks_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agentwrit.toml"
    file.write_text('port = 9000\nissuer = "https://issuer.example"\naudience = ["a", "b"]\n')
    settings = load({"AGENTWRIT_PORT": "9001"}, file)
    assert (settings.port, settings.issuer, settings.audience) == (9001, "https://issuer.example", ("a", "b"))


def test_lists_in_a_variable_are_separated_by_commas() -> None:
    settings = load({"AGENTWRIT_AUDIENCE": "a, b,", "AGENTWRIT_TRUSTED_PROXIES": "10.0.0.0/8,::1"})
    assert settings.audience == ("a", "b") == settings.default_audience
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "::1/128"]


def test_a_url_is_taken_without_its_last_slash() -> None:
    assert load({"AGENTWRIT_PUBLIC_URL": "https://broker.example/x/"}).public_url == ("https://broker.example/x",)
    assert load({"AGENTWRIT_PUBLIC_URL": ""}).public_url == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", ""),
        ("PORT", "http"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", "80.5"),
        ("HOST", ""),
        ("DATA_DIR", ""),
        ("DATA_DIR", "~nobody-of-this-name/data"),
        ("ISSUER", ""),
        ("DEFAULT_TTL", "0"),
        ("DEFAULT_TTL", "five"),
        ("MAX_TTL", "-1"),
        ("APP_TOKEN_TTL", "59"),
        ("ADMIN_TOKEN_TTL", "0"),
        ("TRUST_DOMAIN", "Agent Writ"),
        ("TRUST_DOMAIN", ""),
        ("PUBLIC_URL", "broker.example"),
        ("PUBLIC_URL", "ftp://broker.example"),
        ("PUBLIC_URL", "https://"),
        ("PUBLIC_URL", "https://broker.example?x=1"),
        ("PUBLIC_URL", "https://[::1"),
        ("PUBLIC_URL", "https://broker.example#top"),
        ("PUBLIC_URL", "https://user@broker.example"),
        ("PUBLIC_URL", "https://broker.example:99999"),
        ("PUBLIC_URL", "https://broker.example, broker.svc"),
        ("TRUSTED_PROXIES", "everyone"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("METRICS_PORT", "0"),
        ("WORKERS", "0"),
        ("WORKERS", "2"),
        ("DATABASE_URL", "postgresql://localhost/x"),
        ("TLS_CERT", "cert.pem"),
        ("TLS_KEY", "key.pem"),
        ("TLS_CLIENT_CA", "ca.pem"),
    ],
)
def test_a_bad_value_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"AGENTWRIT_{name}") as refusal:
        load({f"AGENTWRIT_{name}": value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("line", ["port = true", "port = 80.5", 'audience = "a"x', "audience = [1]", "issuer = 5"])
def test_a_value_of_another_type_in_the_file_is_refused_with_the_files_name(tmp_path: Path, line: str) -> None:
    file = tmp_path / "agentwrit.toml"
    file.write_text(line)
    with pytest.raises(ConfigurationError, match=r"agentwrit\.toml"):
        load({}, file)


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "agentwrit.toml"
    file.write_text("prot = 8080\n")
    with pytest.raises(ConfigurationError, match=r"prot in .* is not a setting: did you mean port\?"):
        load({}, file)


@pytest.mark.parametrize("content", [b"port = ", b"\xff\xfe", b"[broker]\nport = 1\n"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "agentwrit.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"agentwrit\.toml"):
        load({}, file)
    with pytest.raises(ConfigurationError, match=r"missing\.toml cannot be read"):
        load({}, tmp_path / "missing.toml")


def test_a_default_ttl_above_the_largest_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="AGENTWRIT_DEFAULT_TTL is larger"):
        load({"AGENTWRIT_DEFAULT_TTL": "100", "AGENTWRIT_MAX_TTL": "50"})


def test_an_unknown_variable_is_reported_with_the_nearest_name() -> None:
    environ = {
        "AGENTWRIT_PROT": "1",
        "AGENTWRIT_XYZZY": "1",
        "AGENTWRIT_PORT": "1",
        "AGENTWRIT_BROKER_URL": "x",
        "AGENTWRIT_CLIENT_ID": "x",
        "AGENTWRIT_CLIENT_SECRET": "x",
        "HOME": "/",
    }
    assert unknown_variables(environ) == [
        "AGENTWRIT_PROT is not a setting: did you mean AGENTWRIT_PORT?",
        "AGENTWRIT_XYZZY is not a setting",
    ]


@pytest.mark.parametrize("name", ["AGENTWRIT_PORT", "AGENTWRIT_METRICS_PORT"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_told_as_that(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name} takes a whole number .* enableServiceLinks: false"):
        load({name: "tcp://10.96.0.12:8080"})
    with pytest.raises(ConfigurationError) as refusal:
        load({name: "80a"})
    assert "Kubernetes" not in str(refusal.value)


def test_the_secret_of_an_operator_with_a_name_is_not_taken_for_the_first_ones(tmp_path: Path) -> None:
    ana = {"AGENTWRIT_OPERATOR": "ana", "AGENTWRIT_ADMIN_SECRET": "a-secret-of-anas"}
    assert load(ana).admin_secret is None
    [line] = unknown_variables(ana)
    assert "AGENTWRIT_ADMIN_SECRET is the secret of the operator whom AGENTWRIT_OPERATOR names" in line
    file = tmp_path / "agentwrit.toml"
    file.write_text('admin_secret = "a-secret-of-the-firsts"')
    assert load(ana, file).admin_secret == "a-secret-of-the-firsts"
    for first in ("", "admin"):
        assert load({**ana, "AGENTWRIT_OPERATOR": first}).admin_secret == "a-secret-of-anas"
        assert unknown_variables({**ana, "AGENTWRIT_OPERATOR": first}) == []


def test_no_secret_is_shown() -> None:
    secret = "a-secret-that-nobody-sees"
    settings = load({"AGENTWRIT_ADMIN_SECRET": secret, "AGENTWRIT_MASTER_KEY": secret})
    assert (settings.admin_secret, settings.master_key) == (secret, secret)
    assert secret not in repr(settings)
    with pytest.raises(ConfigurationError) as refusal:
        load({"AGENTWRIT_DATABASE_URL": f"postgresql://user:{secret}@localhost/x"})
    assert secret not in str(refusal.value)


def test_a_broker_may_be_reached_by_several_urls_of_which_the_first_is_told(tmp_path: Path) -> None:
    settings = load({"AGENTWRIT_PUBLIC_URL": "https://broker.example/, http://broker.svc"})
    assert settings.public_url == ("https://broker.example", "http://broker.svc")
    assert (settings.told_url, settings.is_tls) == ("https://broker.example", True)
    file = tmp_path / "agentwrit.toml"
    file.write_text('public_url = ["http://broker.svc", "https://broker.example"]\n')
    assert load({}, file).told_url == "http://broker.svc"
    file.write_text('public_url = "http://broker.svc"\n')
    assert load({}, file).public_url == ("http://broker.svc",)


@pytest.mark.parametrize(
    ("environ", "is_doubtful"),
    [
        ({}, False),
        ({"AGENTWRIT_HOST": "::1"}, False),
        ({"AGENTWRIT_HOST": "localhost"}, False),
        ({"AGENTWRIT_HOST": "0.0.0.0"}, True),
        ({"AGENTWRIT_HOST": "::"}, True),
        ({"AGENTWRIT_HOST": "broker.example"}, True),
        ({"AGENTWRIT_TRUSTED_PROXIES": "127.0.0.1"}, True),
        ({"AGENTWRIT_HOST": "0.0.0.0", "AGENTWRIT_PUBLIC_URL": "https://broker.example"}, False),
    ],
)
def test_a_broker_that_others_reach_by_a_name_that_is_not_set_is_reported(
    environ: dict[str, str], is_doubtful: bool
) -> None:
    lines = doubts(load(environ))
    assert bool(lines) == is_doubtful
    assert all(line.startswith("AGENTWRIT_PUBLIC_URL is not set") and "\n" not in line for line in lines)
