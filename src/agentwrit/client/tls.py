"""How clients show themselves, and whom they trust, where the broker is reached by https.

The rules:

- What is trusted is what the machine trusts, or what SSL_CERT_FILE and SSL_CERT_DIR name, unless the caller says
  otherwise (`verify`).
- A certificate is shown where the broker asks for one (AGENTWRIT_TLS_CLIENT_CA): the caller's (`cert`), or where the
  environment sets a client up, the one that it names.
- Nobody is asked for a passphrase: programs that nobody watches would wait for ever.
"""

import os
import ssl
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from agentwrit.errors import AgentWritError

CLIENT_CERT: Final = "AGENTWRIT_CLIENT_CERT"
CLIENT_KEY: Final = "AGENTWRIT_CLIENT_KEY"

Certificate: TypeAlias = str | tuple[str, ...]
"""A PEM file with a certificate and its key, or the files of each, and perhaps the passphrase of the key."""


def from_environment(environ: Mapping[str, str] = os.environ) -> Certificate | None:
    """The certificate that the environment has a client show, if any.

    Raises:
        AgentWritError: it names a key and no certificate.
    """
    certificate, key = environ.get(CLIENT_CERT), environ.get(CLIENT_KEY)
    if certificate:
        return (certificate, key) if key else certificate
    if key:
        raise AgentWritError(f"{CLIENT_KEY} is set without {CLIENT_CERT}: set both, or neither")
    return None


def context(verify: Any = None, cert: Any = None) -> ssl.SSLContext:
    """What TLS is spoken with. `verify`: as for httpx2; `cert`: a `Certificate`.

    Raises:
        AgentWritError: a file cannot be loaded.
    """
    import httpx2  # here, so that importing the SDK does not pay for it

    try:
        made = httpx2.create_ssl_context(verify=True if verify is None else verify)
    except OSError as error:
        raise AgentWritError(f"what is to be trusted cannot be loaded: {error}") from None
    if cert is not None:
        show(made, cert)
    return made


def show(context: ssl.SSLContext, cert: Certificate) -> None:
    """Have a certificate shown.

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
