"""Image layers travel from host to host, with no registry, and only those that the target lacks."""

import pytest

from lab.cluster import Cluster
from lab.host import Host
from protocol.commands import Reply, ReplyKind
from tests.e2e.support import clean, until

EXTRA = "extra:1"
"""An image of the `layers` image's three layers and one small one more."""
SMALL = 200_000


def make_extra(host: Host) -> str:
    host.ensure_image("layers")
    host.docker("rm", "--force", "making", check=False)
    host.docker("run", "--name", "making", "layers", "sh", "-c", "echo more > /more")
    host.docker("commit", "making", EXTRA)
    host.docker("rm", "making")
    return host.docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", EXTRA)


def without_images(host: Host) -> None:
    for image in (EXTRA, "layers"):
        host.docker("image", "rm", "--force", image, check=False)


def layer_bytes(reply: Reply) -> int:
    assert reply.report is not None
    return sum(part.bytes for part in reply.report.parts if part.name == "layers")


@pytest.mark.parametrize(
    ("source", "target"),
    [("a28", "b28"), ("a26", "b28"), ("a28", "c28"), ("c28", "a28")],
    ids=["28-28", "26-28", "overlay2-containerd", "containerd-overlay2"],
)
async def test_image_absent_partly_present_and_present(moves: Cluster, source: str, target: str) -> None:
    a, b = moves[source], moves[target]
    try:
        for host in (a, b):
            without_images(host)
        layers = make_extra(a)
        sent = {}
        for case in ("absent", "partly", "present"):
            if case == "partly":
                b.docker("image", "rm", "--force", EXTRA)
                b.ensure_image("layers")
            a.docker("run", "-d", "--name", "layered", EXTRA, "sh", "-c", "while :; do cat /more; sleep 0.05; done")
            reply = await moves.migrate("layered", source, target)
            assert reply.kind is ReplyKind.FINISHED, (case, reply.error)
            sent[case] = layer_bytes(reply)
            printed = len(b.docker("logs", "layered").split())
            await until(lambda n=printed: len(b.docker("logs", "layered").split()) > n, "it goes on")  # type: ignore[misc]
            assert b.docker("inspect", "-f", "{{.Config.Image}}", "layered") == EXTRA
            assert b.docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", EXTRA) == layers
            assert b.docker("run", "--rm", EXTRA, "cat", "/more") == "more", "the image is whole"
            b.docker("rm", "--force", "layered")
            await clean(moves, source, target)
        assert sent["present"] == 0
        assert 0 < sent["partly"] < SMALL < sent["absent"], sent
    finally:
        for host in (a, b):
            host.docker("rm", "--force", "layered", check=False)
            without_images(host)
