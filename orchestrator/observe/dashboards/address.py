"""Addresses that a user gives: checked, and never with a secret in them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from orchestrator.errors import InputError


def checked_url(url: str, location: str, example: str) -> str:
    """An http address without a trailing slash.

    Raises:
        InputError: it is none, or holds a user or password, which would be written down or shown.
    """
    remedy = f"such as {example}"
    try:
        parts = urlsplit(url.strip())
        _ = parts.port  # a port that is no number is found when it is asked for
    except ValueError as error:
        raise InputError("not an address", location, remedy) from error
    if parts.username is not None or parts.password is not None or "@" in url:
        raise InputError(
            "the address holds a user or password",
            location,
            "take it out; for Grafana, set GRAFANA_USER and GRAFANA_PASSWORD or GRAFANA_TOKEN",
        )
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or re.search(r"\s", parts.netloc)
    ):
        raise InputError(f"{url!r} is no http address", location, remedy)
    if parts.query or parts.fragment:
        raise InputError(f"{url!r} has more than a host and a path", location, remedy)
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
