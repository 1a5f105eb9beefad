"""The certificate that the gateway shows."""

import ssl
from pathlib import Path


class TlsError(Exception):
    """The certificate or its key cannot be used; the text says which, and why."""


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Read a certificate (with its chain) and its key, in PEM; without `key` both are in one file.

    Raises:
        TlsError: they cannot be read, or do not belong together.
    """
    for path in (certificate, key):
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise TlsError(f"{error.strerror}: {path}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        why = (error.reason or str(error)).replace("_", " ").lower()
        raise TlsError(
            f"{certificate} and {key or 'the key in it'} cannot be used ({why}): write a "
            "certificate and its key, without a password, in PEM"
        ) from None
    except ValueError as error:
        raise TlsError(str(error)) from None
    return context


def client_context(certificate: Path) -> ssl.SSLContext:
    """Trust this certificate and no other, whatever host it names.

    For commands on the gateway's own machine: they read the same file that the gateway shows.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def _no_password() -> str:
    # OpenSSL would ask the terminal for it otherwise, and the daemon would wait for ever.
    raise ValueError("the key has a password; write it without one (openssl pkey -in … -out …)")
