"""TLS for connections to the broker: client certificates and trusted CAs.

The rules:

- The client trusts what the machine trusts, or what SSL_CERT_FILE and SSL_CERT_DIR name, unless the caller says
  otherwise (`verify`).
- If the broker requests a client certificate (AGENTWRIT_TLS_CLIENT_CA), the client shows the caller's (`cert`), or the
  one that the environment names if the client is configured by the environment.
- No passphrase is prompted for: an unattended program would wait forever.
"""

import os
import ssl
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from agentwrit.errors import AgentWritError

CLIENT_CERT: Final = "AGENTWRIT_CLIENT_CERT"
CLIENT_KEY: Final = "AGENTWRIT_CLIENT_KEY"

Certificate: TypeAlias = str | tuple[str, ...]
"""A PEM file with a certificate and its key, or the file of each, optionally with the key's passphrase."""


def from_environment(environ: Mapping[str, str] = os.environ) -> Certificate | None:
    """The client certificate that the environment names, if any.

    Raises:
        AgentWritError: it names a key but no certificate.
    """
    certificate, key = environ.get(CLIENT_CERT), environ.get(CLIENT_KEY)
    if certificate:
        return (certificate, key) if key else certificate
    if key:
        raise AgentWritError(f"{CLIENT_KEY} is set without {CLIENT_CERT}: set both, or neither")
    return None


def context(verify: Any = None, cert: Any = None) -> ssl.SSLContext:
    """The TLS settings. `verify`: as for httpx2; `cert`: a `Certificate`.

    Raises:
        AgentWritError: a file cannot be loaded.
    """
    import httpx2  # here, so that importing the SDK does not load it

    try:
        made = httpx2.create_ssl_context(verify=True if verify is None else verify)
    except OSError as error:
        raise AgentWritError(f"what is to be trusted cannot be loaded: {error}") from None
    if cert is not None:
        show(made, cert)
    return made


def show(context: ssl.SSLContext, cert: Certificate) -> None:
    """Load the client certificate to show.

    Raises:
        AgentWritError: it cannot be loaded.
    """
    certificate, *rest = (cert,) if isinstance(cert, str) else cert
    key, passphrase = (*rest, None, None)[:2]
    try:
        context.load_cert_chain(certificate, key, passphrase or "")
    except (OSError, ValueError) as error:
        files = certificate if key is None else f"{certificate} with the key {key}"
        raise AgentWritError(f"the client's certificate {files} cannot be loaded: {error}") from None
