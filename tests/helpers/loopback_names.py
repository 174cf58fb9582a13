"""As ``sitecustomize``: names under .localhost are loopback (RFC 6761), whether the resolver knows or not."""

import socket

_real = socket.getaddrinfo


def _getaddrinfo(host, *arguments, **more):  # type: ignore[no-untyped-def]
    return _real("127.0.0.1" if str(host).endswith(".localhost") else host, *arguments, **more)


socket.getaddrinfo = _getaddrinfo
