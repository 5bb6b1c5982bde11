"""A registry as a store: pushed from one host, pulled and restored on another; it stops when it is safe."""

import json
from collections.abc import Iterator

import pytest

from lab.cluster import Cluster
from lab.workloads import run_counter
from tests.e2e.archives import give_tools, last_logged, remove, run, said, state
from tests.e2e.support import clean, counts_on, until

REGISTRY = """\
version: 0.1
storage: {filesystem: {rootdirectory: /srv/registry}}
http: {addr: 0.0.0.0:5000}
"""


@pytest.fixture(scope="module")
def registry(keeps: Cluster) -> Iterator[Cluster]:
    """Debian's docker-registry on a26; skopeo on both hosts."""
    for name in ("a26", "b28"):
        give_tools(keeps[name])
    host = keeps["a26"]
    host.node.write("/srv/registry.yml", REGISTRY)
    process = host.popen(["docker-registry", "serve", "/srv/registry.yml"])
    try:
        yield keeps
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize(("source", "target"), [("a26", "b28"), ("b28", "a26")])
async def test_a_checkpoint_goes_through_a_registry(registry: Cluster, source: str, target: str) -> None:
    """From one engine to the other, and stopped at the source; restored twice there, once as a clone."""
    here, there = registry[source], registry[target]
    name, image = f"ck-pushed-{source}", f"oci:a26:5000/checkpoints/web:{source}"
    try:
        await until(lambda: catalog(registry) is not None, "the registry answers")
        run_counter(here, name)
        await counts_on(here, name)
        info = said(registry, source, f"transship checkpoint {name} --to {image} --with-image")
        assert info["place"] == image
        assert state(here, name) == "exited"
        last = last_logged(here, name)
        assert "checkpoints/web" in (catalog(registry) or [])
        inspected = run(
            registry, target, f"skopeo inspect --raw --tls-verify=false docker://{image.removeprefix('oci:')}"
        )
        manifest = json.loads(inspected.stdout)
        assert manifest["annotations"]["org.criu.checkpoint.container.name"] == name
        assert manifest["annotations"]["org.criu.checkpoint.engine.name"] == "transship"
        assert manifest["annotations"]["org.criu.checkpoint.rootfsImageName"] == "py"
        assert len(manifest["layers"]) == 1
        run(registry, source, f"transship restore {image} --on {target}")
        run(registry, target, f"transship restore {image} --name {name}-two")
        for each in (name, f"{name}-two"):
            assert last in (await counts_on(there, each)).logged
        for host in ("a26", "b28"):
            assert run(registry, host, "ls /var/lib/transship/layouts").stdout == "", "nothing is left on the way"
        await clean(registry, "a26", "b28")
    finally:
        remove(here, name)
        remove(there, name, f"{name}-two")


def catalog(registry: Cluster) -> list[str] | None:
    done = registry["b28"].run(["curl", "-fsS", "http://a26:5000/v2/_catalog"], check=False)
    return list(json.loads(done.stdout)["repositories"]) if done.returncode == 0 else None


async def test_a_registry_that_does_not_take_it_costs_nothing(registry: Cluster) -> None:
    here, name = registry["b28"], "ck-nowhere"
    try:
        run_counter(here, name)
        await counts_on(here, name)
        failed = run(registry, "b28", f"transship checkpoint {name} --to oci:a26:5999/none", check=False)
        assert failed.returncode == 1
        assert "could not be pushed" in failed.stderr
        assert state(here, name) == "running"
        await counts_on(here, name)
        refused = run(registry, "b28", "transship restore oci:a26:5000/none:such", check=False)
        assert refused.returncode == 2
        assert "could not be pulled" in refused.stderr
        await clean(registry, "b28")
    finally:
        remove(here, name)


async def test_an_image_that_is_no_checkpoint_is_refused(registry: Cluster) -> None:
    host = registry["a26"]
    host.ensure_image("busybox")
    run(
        registry,
        "a26",
        "docker save busybox -o /root/busybox.tar && skopeo copy --quiet --dest-tls-verify=false "
        "docker-archive:/root/busybox.tar docker://a26:5000/busybox:latest",
    )
    refused = run(registry, "a26", "transship restore oci:a26:5000/busybox:latest", check=False)
    assert refused.returncode == 2
    assert "not an archive that transship has written" in refused.stderr
