"""TLS contexts: the gateway's certificate, and trust in it."""

import ssl
from pathlib import Path

from clarad.config import Settings


class TlsError(Exception):
    """The certificate or its key cannot be used; the text says which, and why."""


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """Load the certificate (with its chain) and its key, in PEM; `None` if TLS is not configured.

    Without CLARA_GATEWAY_TLS_KEY, one file has both. This blocks: it reads files.

    Raises:
        TlsError: a file cannot be read, or the key is not the certificate's.
    """
    certificate, key = settings.gateway_tls_cert, settings.gateway_tls_key
    if certificate is None:
        return None
    for name, path in (("CERT", certificate), ("KEY", key)):
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise TlsError(f"CLARA_GATEWAY_TLS_{name}: {error.strerror}: {path}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        why = (error.reason or "they do not hold both").replace("_", " ").lower()
        raise TlsError(
            f"CLARA_GATEWAY_TLS_CERT: {certificate} and {key or 'the key in it'} cannot be used "
            f"({why}); name a certificate and the key that belongs to it, in PEM"
        ) from None
    except ValueError as error:
        raise TlsError(str(error)) from None
    return context


def client_context(certificate: Path) -> ssl.SSLContext:
    """Return a context that trusts only this certificate, whatever host it names.

    For commands on the gateway's machine, which read the same file as the gateway.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def _no_password() -> str:
    # Otherwise OpenSSL would prompt on the terminal, and block the daemon.
    raise ValueError(
        "CLARA_GATEWAY_TLS_KEY: the key has a password; take it out (openssl pkey -in … -out …)"
    )
