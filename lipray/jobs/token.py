"""The cluster's token, found where Ray finds it. It goes into a header, never into a log, a message or a file."""

from __future__ import annotations

import os
from pathlib import Path

from lipray.errors import UsageError

VALUE, FILE, MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"


def find_token() -> str | None:
    """The token in ``RAY_AUTH_TOKEN``, the file ``RAY_AUTH_TOKEN_PATH`` names, or ``~/.ray/auth_token``, in this order.

    ``RAY_AUTH_MODE=disabled`` leaves it unused.

    Raises:
        UsageError: a file was named and cannot be read, a token cannot be sent, or one is demanded and there is none.
    """
    mode = os.environ.get(MODE, "").lower()
    if mode == "disabled":
        return None
    if os.environ.get(VALUE):
        return _checked(os.environ[VALUE], VALUE)
    named = os.environ.get(FILE)
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return _checked(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as fault:
        if not named and isinstance(fault, FileNotFoundError):
            if mode == "token":
                raise UsageError(MODE, "is token, and there is none", hint=f"Set {VALUE} or {FILE}.") from None
            return None
        why = (fault.strerror if isinstance(fault, OSError) else None) or "not text"
        raise UsageError(FILE if named else str(path), f"the token cannot be read ({why})") from None


def headers(token: str | None) -> dict[str, str]:
    """What a request carries."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _checked(text: str, source: str) -> str:
    token = text.strip()
    if not token:
        raise UsageError(source, "the token is empty", hint="Put the cluster's token there, or remove it.")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(source, "this is no token: it must be one word of plain characters")
    return token
