"""Addresses: what cannot be meant is refused, and a password in one is never shown."""

from __future__ import annotations

import pytest

from orchestrator.errors import InputError
from orchestrator.observe.dashboards.address import checked_url

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:3000", "no http address"),
        ("ftp://localhost", "no http address"),
        ("http://", "no http address"),
        ("http://a b", "no http address"),
        ("http://localhost:grafana", "not an address"),
        ("http://localhost:99999", "not an address"),
        ("http://[::1", "not an address"),
        ("http://localhost:3000/?orgId=1", "more than a host and a path"),
        (f"http://ann:{PASSWORD}@localhost", "holds a user or password"),
        (f"ann:{PASSWORD}@localhost", "holds a user or password"),
    ],
)
def test_addresses_that_cannot_be_meant(url: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        checked_url(url, "--url", "http://localhost:3000")
    assert says in str(error.value)
    assert PASSWORD not in str(error.value)


def test_addresses_are_cleaned() -> None:
    assert checked_url(" http://[::1]:3000/grafana/ ", "", "") == "http://[::1]:3000/grafana"
