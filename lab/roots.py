"""Root file systems of lab machines: made once per recipe, cached outside the checkout, used as overlay layers.

`base` is a Debian 13 root with Docker 26 and a newer CRIU; `docker28` is what Docker 28 changes in it; `venv` holds
the agent's dependencies. A layer's folder is named after everything that went into it, so another recipe is
another folder, and old ones go when nobody has used them for a while. The mirror is the machine's own.
"""

import ast
import fcntl
import hashlib
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import shell
from lab.shell import LabError

CHECKOUT = Path(__file__).resolve().parent.parent
RELEASE, NEXT_RELEASE = "trixie", "forky"
PACKAGES = (
    *("docker.io", "docker-cli", "containerd", "runc", "iptables", "nftables", "iproute2", "mosquitto", "tini"),
    *("python3", "python3-venv", "ca-certificates", "procps", "util-linux", "busybox-static", "curl", "uidmap"),
)
_KEEP_UNUSED_SECONDS = 3600
# Debian 13's CRIU 4.1.1 can't dump TCP sockets on recent kernels; everything else stays Debian 13.
_PIN = f"Package: *\\nPin: release n={NEXT_RELEASE}\\nPin-Priority: 50\\n"
_SETUP = f'mkdir -p "$1/etc/apt/preferences.d"; printf "{_PIN}" >"$1/etc/apt/preferences.d/next"'
_CUSTOMIZE = (
    f'chroot "$1" apt-get install -y -t {NEXT_RELEASE} criu',
    # What dockerd's userns-remap "default" would make itself, at a number of its own choice.
    'chroot "$1" useradd --system --no-create-home dockremap',
    'echo dockremap:100000:65536 | tee "$1/etc/subuid" >"$1/etc/subgid"',
)
_INSTALL = """
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq {}
apt-get clean
rm -rf /var/lib/apt/lists/*
"""
_VENV = """
python3 -m venv /opt/transship
/opt/transship/bin/pip install --quiet --no-cache-dir --requirement /tmp/requirements --constraint /tmp/constraints
"""
# Runs in mount and pid namespaces of its own: nothing is left mounted, however it ends.
_IN_LAYER = """
set -eu
place=$1 lowers=$2 script=$3
mount -t overlay overlay -o "lowerdir=$lowers,upperdir=$place/upper,workdir=$place/work" "$place/root"
mount -t proc proc "$place/root/proc"
mount -t tmpfs tmpfs "$place/root/tmp"
cp "$place"/files/. -R "$place/root/tmp/"
touch "$place/root/etc/resolv.conf"
mount --bind /etc/resolv.conf "$place/root/etc/resolv.conf"
exec chroot "$place/root" sh -euc "$script"
"""


def cache_folder() -> Path:
    return Path(os.environ.get("TRANSSHIP_LAB_CACHE", "/var/cache/transship-lab"))


@dataclass(frozen=True, slots=True)
class Layer:
    """One cached folder; its key stands for all that went into it."""

    name: str
    recipe: str
    below: "Layer | None" = None
    files: tuple[tuple[str, str], ...] = ()
    """Name and content of what the recipe finds in /tmp."""

    @property
    def key(self) -> str:
        recipe = self.recipe + "".join(content for _, content in self.files)
        parts = [self.name, recipe, self.below.key if self.below else ""]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return cache_folder() / "roots" / f"{self.name}-{self.key}"

    @property
    def chain(self) -> "tuple[Layer, ...]":
        """This layer and all below it, topmost first."""
        return (self, *(self.below.chain if self.below else ()))


def base() -> Layer:
    return Layer("base", "\0".join([*PACKAGES, _SETUP, *_CUSTOMIZE, *_FLAGS]))


def docker28() -> Layer:
    return Layer("docker28", install(f"-t {NEXT_RELEASE} docker.io docker-cli containerd runc"), base())


def venv() -> Layer:
    requirements, constraints = _requirements()
    return Layer("venv", _VENV, base(), (("requirements", requirements), ("constraints", constraints)))


def compose_plugin() -> Path:
    """Docker's Compose, for a host that is to have it."""
    return on_top("compose", install("docker-compose")).folder / "usr/libexec/docker/cli-plugins/docker-compose"


def archive_tools() -> Path:
    """A layer with checkpointctl, docker-registry and skopeo in it, for a host that is to have them."""
    return on_top("archives", install("--no-install-recommends checkpointctl docker-registry skopeo")).folder


def storage_tools() -> Path:
    """A layer with what makes a btrfs, for a host that is to have one."""
    return on_top("storage", install("--no-install-recommends btrfs-progs")).folder


def install(words: str) -> str:
    """Write the recipe of a layer that has some packages more, with what else apt-get is to be told."""
    return _INSTALL.format(words)


def on_top(name: str, recipe: str) -> Layer:
    """Make a layer that no root has by itself, if it is not cached."""
    return ensure_layer(Layer(name, recipe, base()))


def ensure_layer(layer: Layer) -> Layer:
    """Make a layer that only some need, if it is not cached."""
    ensure(with_docker28=False)
    make_once(layer.folder, lambda lock: _build(layer, lock))
    return layer


def make_once(path: Path, make: Callable[[int], None]) -> Path:
    """Make a thing of the cache that is not there, one process at a time; `make` gets the lock for its commands."""
    if not path.exists():
        with build_lock() as lock:
            if not path.exists():
                make(lock)
    os.utime(path)  # the time of last use
    return path


def ensure(*, with_docker28: bool) -> dict[str, tuple[Path, ...]]:
    """Make what is missing and return the layers of each engine's root, topmost first."""
    wanted = [base(), venv(), *([docker28()] if with_docker28 else [])]
    if not all(layer.folder.is_dir() for layer in wanted):
        with build_lock() as lock:
            for layer in wanted:
                if not layer.folder.is_dir():
                    _build(layer, lock)
            remove_unused(cache_folder() / "roots", keep={layer.folder for layer in wanted})
    for layer in wanted:
        os.utime(layer.folder)  # the time of last use
    roots: dict[str, tuple[Path, ...]] = {"docker26": (venv().folder, base().folder)}
    if with_docker28:
        roots["docker28"] = (venv().folder, docker28().folder, base().folder)
    return roots


@contextmanager
def build_lock() -> Iterator[int]:
    """Let one builder at a time work on the cache; yields the lock for the builder's commands to hold too."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def remove_unused(folder: Path, keep: set[Path]) -> None:
    """Remove cached things that no machine runs on and that nobody asked for lately; the caller holds the lock."""
    for path in folder.iterdir():
        if path in keep or time.time() - path.stat().st_mtime < _KEEP_UNUSED_SECONDS:
            continue
        with _try_lock(path) as free:
            if free:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def debootstrap(target: Path, packages: tuple[str, ...], lock: int, *hooks: str) -> None:
    """Make a Debian 13 root with some packages: a folder, or a tar file if the target is called so."""
    mirror = _mirror()
    sources = [f"deb {mirror} {release} main" for release in (RELEASE, NEXT_RELEASE)]
    argv = ["mmdebstrap", *_FLAGS, *_proxies(), f"--include={','.join(packages)}", f"--setup-hook={_SETUP}"]
    argv += [f"--customize-hook={hook}" for hook in hooks]
    isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    shell.run([*isolated, *argv, RELEASE, str(target), *sources], timeout=1200, pass_fds=[lock])


_FLAGS = (
    "--variant=minbase",
    "--mode=root",
    "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg",
    # The next release's index may be past its date, and a mirror's clock may be another one.
    *(f"--aptopt=Acquire::{check} false" for check in ("Check-Valid-Until", "Check-Date")),
    '--aptopt=APT::Install-Recommends "false"',
    '--aptopt=Acquire::Languages "none"',
    "--dpkgopt=force-unsafe-io",
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")),
)


def _build(layer: Layer, lock: int) -> None:
    work = layer.folder.with_name(f".new-{layer.name}")
    shutil.rmtree(work, ignore_errors=True)
    (work / "files").mkdir(parents=True)
    if layer.below is None:
        made = work / "root"
        debootstrap(made, PACKAGES, lock, *_CUSTOMIZE)
    else:
        made = work / "upper"
        for name in ("upper", "work", "root"):
            (work / name).mkdir()
        for name, content in layer.files:
            (work / "files" / name).write_text(content)
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
        lowers = ":".join(str(below.folder) for below in layer.below.chain)
        argv = ["sh", "-c", _IN_LAYER, "layer", str(work), lowers, layer.recipe]
        shell.run([*isolated, *argv], timeout=900, env=_pip_environment(work / "files"), pass_fds=[lock])
    made.rename(layer.folder)
    shutil.rmtree(work)


def _requirements() -> tuple[str, str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    constraints = CHECKOUT / "constraints.txt"
    return "\n".join(project["dependencies"]) + "\n", constraints.read_text() if constraints.exists() else ""


def _mirror() -> str:
    """Ask apt where this machine gets Debian from."""
    for attempt in range(2):
        targets = shell.run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)"]).stdout.splitlines()
        for target in targets:
            uri, _, label = target.partition(" ")
            if label == "Debian":
                return uri
        # The labels are known once the lists have been fetched.
        if attempt == 0:
            shell.run(["apt-get", "update", "-qq"], timeout=300)
    raise LabError("apt on this machine has no source labelled Debian")


def _proxies() -> list[str]:
    """Hand the machine's proxy on to the apt of the new root."""
    lines = shell.run(["apt-config", "dump", "--format", "%f %v%n"]).stdout.splitlines()
    settings = (line.split(" ", 1) for line in lines)
    return [f'--aptopt={name} "{value}"' for name, value in settings if name.lower().endswith("::proxy") and value]


def _pip_environment(files: Path) -> dict[str, str]:
    """Translate this machine's pip settings for a pip in a root that has none of this machine's files."""
    listed = shell.run([sys.executable, "-m", "pip", "config", "list"]).stdout.splitlines()
    settings = {}
    for line in listed:
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    for name in ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout"):
        reachable = [word for word in settings.get(name, "").split() if not word.startswith("file:")]
        if reachable:
            env["PIP_" + name.upper().replace("-", "_")] = " ".join(reachable)
    env |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    certificates = Path(settings.get("cert", "/etc/ssl/certs/ca-certificates.crt"))
    if certificates.exists():
        shutil.copy(certificates, files / "certificates")
        env["PIP_CERT"] = "/tmp/certificates"
    return env


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)
