"""Workload images for the hosts, made offline from the cached roots as archives for `docker load`.

`busybox` is one static program with all its applets; `py` adds a Python; `layers` has three layers on top of
each other, so that a move can find some of them present; `redis` is that server and its client, small enough for an
emulated machine; `zoo` holds real servers from Debian packages.
Once made, an archive is the same for all hosts: equal image ids, equal layer digests.
"""

import hashlib
import io
import json
import platform
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import roots, shell
from lab.shell import LabError

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ZOO = (
    *("python3", "redis-server", "nginx-light", "postgresql", "memcached"),
    *("iproute2", "curl", "procps", "netcat-openbsd"),
)
# Runs once the packages are in, with the new root as $1.
_ZOO_SETUP = r"""
set -eu
# PostgreSQL's just-in-time compiler would be two fifths of the image.
rm -f "$1"/usr/lib/*/libLLVM* "$1"/usr/lib/*/libz3*
version=$(ls "$1/etc/postgresql")
# /run/postgresql does not outlast the making of an image, hence the socket's place.
cat >"$1/etc/postgresql/$version/main/conf.d/lab.conf" <<END
jit = off
listen_addresses = '*'
unix_socket_directories = '/tmp'
END
cat >"$1/etc/postgresql/$version/main/pg_hba.conf" <<END
local all all trust
host all all all trust
END
# `docker run --user postgres zoo postgres` starts Debian's cluster, whatever its version.
cat >"$1/usr/local/bin/postgres" <<END
#!/bin/sh
exec /usr/lib/postgresql/$version/bin/postgres -D /var/lib/postgresql/$version/main \
    -c config_file=/etc/postgresql/$version/main/postgresql.conf "\$@"
END
chmod 755 "$1/usr/local/bin/postgres"
"""
# A layer's folder /srv/redis gets the two programs and what they need of libraries.
_REDIS = (
    roots.install("--no-install-recommends redis-server redis-tools")
    + r"""
mkdir -p /srv/redis/usr/bin
cp -L /usr/bin/redis-server /usr/bin/redis-cli /srv/redis/usr/bin/
ldd /usr/bin/redis-server /usr/bin/redis-cli | grep -o '/[^ :]*[.]so[^ :]*' | sort -u | while read -r file; do
    mkdir -p "/srv/redis/usr$(dirname "${file#/usr}")"
    cp -L "$file" "/srv/redis/usr${file#/usr}"
done
"""
)
_VERSION = "1"  # of the code below: another number makes every image anew
_CREATED = "2000-01-01T00:00:00Z"
_SKIPPED = {"test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data"}


def ensure(name: str) -> Path:
    """Make an image's archive if it is not cached, and return it."""
    maker = _MAKERS.get(name)
    if maker is None:
        raise LabError(f"no image {name}: the lab makes {', '.join(_MAKERS)}")
    roots.ensure(with_docker28=False)
    of_its_own = [_REDIS] if name == "redis" else []
    recipe = "\0".join([_VERSION, name, roots.base().key, *_ZOO, _ZOO_SETUP, *of_its_own])
    archive = roots.cache_folder() / "images" / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar"
    if name == "redis" and not archive.exists():
        roots.on_top("redis", _REDIS)  # takes the lock that is held while an archive is made
    return roots.make_once(archive, lambda lock: _build(name, maker, archive, lock))


def _build(name: str, maker: "_Maker", archive: Path, lock: int) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    roots.remove_unused(archive.parent, keep=set())
    work = archive.with_name(f".new-{name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    made = work / "archive"
    _write_archive(made, name, maker(work, lock))
    made.rename(archive)
    shutil.rmtree(work)


# The archive, as `docker save` writes it


def _write_archive(archive: Path, name: str, layers: list[Path]) -> None:
    digests = [_sha256(layer) for layer in layers]
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = json.dumps({
        "architecture": architecture,
        "os": "linux",
        "created": _CREATED,
        "config": {"Env": [f"PATH={_PATH}"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [{"created": _CREATED, "created_by": "transship lab"} for _ in digests],
    }).encode()  # fmt: skip
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    files = [f"{digest}/layer.tar" for digest in digests]
    manifest = json.dumps([{"Config": config_name, "RepoTags": [f"{name}:latest"], "Layers": files}]).encode()
    with tarfile.open(archive, "w") as tar:
        _add_bytes(tar, config_name, config)
        for file, layer in zip(files, layers, strict=True):
            tar.add(layer, file)
        _add_bytes(tar, "manifest.json", manifest)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# The layers


@dataclass(frozen=True, slots=True)
class _LayerTar:
    """A layer being written: everything belongs to root and has the same age."""

    tar: tarfile.TarFile

    def folder(self, *names: str, mode: int = 0o755) -> None:
        for name in names:
            self._add(name, tarfile.DIRTYPE, mode)

    def link(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, target=target)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        _add_bytes(self.tar, name, content, mode)

    def copy(self, source: Path, name: str) -> None:
        """Add a file's content, whatever link leads to it."""
        self.file(name, source.read_bytes(), source.stat().st_mode & 0o777)

    def tree(self, root: Path, top: str) -> None:
        for path in sorted((root / top).rglob("*")):
            name = path.relative_to(root)
            if _SKIPPED & set(name.parts):
                continue
            if path.is_symlink():
                self.link(str(name), str(path.readlink()))
            elif path.is_dir():
                self.folder(str(name))
            else:
                self.copy(path, str(name))

    def _add(self, name: str, kind: bytes, mode: int, target: str = "") -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname = kind, mode, target
        self.tar.addfile(info)


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def _layer(file: Path, fill: Callable[[_LayerTar], None]) -> Path:
    with tarfile.open(file, "w") as tar:
        fill(_LayerTar(tar))
    return file


def _fill_busybox(layer: _LayerTar) -> None:
    program = roots.base().folder / "usr/bin/busybox"
    layer.folder("usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "root", "var", "var/log")
    layer.folder("tmp", "var/tmp", mode=0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        layer.link(name, f"usr/{name}")
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    layer.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    layer.copy(program, "usr/bin/busybox")
    for applet in shell.run([str(program), "--list"]).stdout.split():
        if applet != "busybox":
            layer.link(f"usr/bin/{applet}", "busybox")


def _fill_python(layer: _LayerTar) -> None:
    root = roots.base().folder
    [library] = root.glob("usr/lib/python3.[0-9]*")
    program = f"usr/bin/{library.name}"
    layer.copy(root / program, program)
    layer.link("usr/bin/python3", library.name)
    layer.folder(f"usr/lib/{library.name}")
    layer.tree(root, f"usr/lib/{library.name}")
    modules = sorted(str(path.relative_to(root)) for path in library.glob("lib-dynload/*.so"))
    for path in _shared_libraries(root, [program, *modules]):
        # The root's absolute links would lead into this machine's files; the relative ones stay in the root.
        layer.copy(root / path, path)


def _shared_libraries(root: Path, programs: Iterable[str]) -> list[str]:
    """Ask the root's own loader what these programs need; the answer as paths below /usr."""
    listed = shell.run(["chroot", str(root), "ldd", *programs]).stdout.split()
    found = {word for word in listed if word.startswith(("/lib", "/usr/lib")) and ".so" in word}
    found = {path if path.startswith("/usr") else f"/usr{path}" for path in found if not path.endswith(":")}
    return sorted(path.lstrip("/") for path in found if "/python3" not in path)


def _busybox(work: Path, _lock: int) -> list[Path]:
    return [_layer(work / "busybox.tar", _fill_busybox)]


def _py(work: Path, lock: int) -> list[Path]:
    return [*_busybox(work, lock), _layer(work / "py.tar", _fill_python)]


def _layers(work: Path, lock: int) -> list[Path]:
    def second(layer: _LayerTar) -> None:
        layer.folder("data")
        layer.file("data/from-second", _noise("second", 4 << 20))
        layer.file("data/changed", b"as the second layer has it\n")
        layer.file("data/removed", b"the third layer removes this\n")

    def third(layer: _LayerTar) -> None:
        layer.folder("data")
        layer.file("data/from-third", _noise("third", 1 << 20))
        layer.file("data/changed", b"as the third layer has it\n")
        layer.file("data/.wh.removed", b"")

    return [*_busybox(work, lock), _layer(work / "second.tar", second), _layer(work / "third.tar", third)]


def _zoo(work: Path, lock: int) -> list[Path]:
    file = work / "zoo.tar"
    # Nothing may be started while packages are set up, and nothing can be: there is no init in the root.
    roots.debootstrap(file, _ZOO, lock, _ZOO_SETUP)
    return [file]


def _redis(work: Path, lock: int) -> list[Path]:
    tree = roots.on_top("redis", _REDIS).folder / "srv/redis"
    return [*_busybox(work, lock), _layer(work / "redis.tar", lambda layer: layer.tree(tree, "usr"))]


def _noise(seed: str, size: int) -> bytes:
    """Make bytes that do not compress and are the same every time."""
    return hashlib.shake_256(seed.encode()).digest(size)


_Maker = Callable[[Path, int], list[Path]]
_MAKERS: dict[str, _Maker] = {"busybox": _busybox, "py": _py, "layers": _layers, "redis": _redis, "zoo": _zoo}
