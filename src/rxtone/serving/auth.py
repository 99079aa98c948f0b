"""Who may talk to the server."""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING

from rxtone.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

USER = "rxtone"
"""The name at the page's login; the password is the token."""
LEAST = 16
"""Characters of the shortest token that is accepted."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """Read the token that clients must show.

    Args:
        path: A file with the token and nothing else.

    Returns:
        The token.

    Raises:
        RecipeError: If the file is missing or the token is short or not plain.
    """
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        msg = f"--token-file {path}: cannot be read: {reason}"
        raise RecipeError(msg) from None
    if len(token) < LEAST or not token.isascii() or any(c.isspace() for c in token):
        msg = (
            f"--token-file {path}: expected at least {LEAST} ASCII characters without blanks, got {len(token)} "
            "characters; make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
        raise RecipeError(msg)
    return token


def token_fits(token: str, shown: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(token.encode(), shown.encode())


def bearer_fits(token: str, header: str) -> bool:
    """Whether an Authorization header carries the token."""
    scheme, _, shown = header.partition(" ")
    return scheme.lower() == "bearer" and token_fits(token, shown.strip())
