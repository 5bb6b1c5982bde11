"""Where a container is on cgroup v2, as its OCI configuration says it."""

import pytest

from agent.runtime.restore import cgroup_of


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ("/docker/4f2a", "/docker/4f2a"),
        ("system.slice:docker:4f2a", "/system.slice/docker-4f2a.scope"),
        (":docker:4f2a", "/system.slice/docker-4f2a.scope"),
        ("user-1000-work.slice:docker:4f2a", "/user.slice/user-1000.slice/user-1000-work.slice/docker-4f2a.scope"),
    ],
)
def test_the_cgroup_is_where_runc_makes_it(said: str, path: str) -> None:
    assert cgroup_of(said) == path
