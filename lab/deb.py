"""The Debian package: `python -m lab.deb DIR`. The wheel and all that it needs; no compiler, no index.

What it needs from PyPI is taken as it lies in the root of the lab's hosts, where that release's own pip has put it: so
it fits that release's Python and no other. Docker, CRIU and the rest are Debian's own, by Depends.
"""

import gzip
import hashlib
import os
import shutil
import sys
import tomllib
import zipfile
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory

from lab import roots, shell
from lab.service import build_wheel

LIBRARY = "usr/lib/transship"
SYSTEMD = {
    "transship-agent.service": "usr/lib/systemd/system/transship-agent.service",
    "transship-logind.conf": "usr/lib/systemd/logind.conf.d/60-transship.conf",
    "transship-tmpfiles.conf": "usr/lib/tmpfiles.d/transship.conf",
    "mosquitto.acl": "usr/share/doc/transship/examples/mosquitto.acl",
    "grafana-dashboard.json": "usr/share/doc/transship/examples/grafana-dashboard.json",
    "prometheus-alerts.yml": "usr/share/doc/transship/examples/prometheus-alerts.yml",
}
COMPLETION = {
    "bash": "usr/share/bash-completion/completions/transship",
    "zsh": "usr/share/zsh/vendor-completions/_transship",
    "fish": "usr/share/fish/vendor_completions.d/transship.fish",
}
# -I: neither the folder that one stands in nor a person's own packages are looked at
PROGRAM = f"""\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/{LIBRARY}")
from agent.__main__ import main

main()
"""
CONTROL = """\
Package: transship
Version: {version}
Architecture: {architecture}
Maintainer: transship <transship@transship.invalid>
Installed-Size: {kib}
Depends: {needs}
Suggests: mosquitto, skopeo
Section: admin
Priority: optional
Description: moves running Docker containers between hosts
 The agent of a host and the command line. A running container goes from one
 host to another with its memory, files, addresses, connections and logs, and
 goes on where it was.
 .
 The Python packages that it needs are in it.
"""
NEEDS = (
    "libc6",
    "docker.io (>= 26) | docker-ce (>= 5:26)",
    "runc | containerd.io",
    "criu (>= 4.2)",
    "nftables",
    "iproute2",
)
COPYRIGHT = f"""\
Copyright: the authors of transship

transship is under the Apache License 2.0, /usr/share/common-licenses/Apache-2.0.

The packages from PyPI that come with it in /{LIBRARY} have their licences there, in the *.dist-info of each.
"""
SCRIPTS = {
    "postinst": f"""\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    python3 -m compileall -q -j 0 /{LIBRARY} >/dev/null 2>&1 || true
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemd-tmpfiles --create transship.conf || true
        systemctl kill --signal=HUP systemd-logind.service || true
    fi
    # Folders, and the runtime in dockerd, which is not restarted. Where that can't be done yet, the package is there.
    transship setup || echo "transship: \\`transship setup\\` is still to be run" >&2
    # After an upgrade. No container is touched by it; what has never been enabled is not started.
    if [ -n "$2" ] && [ -d /run/systemd/system ]; then
        systemctl try-restart transship-agent.service || true
    fi
fi
""",
    "prerm": f"""\
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    # refused as long as a container needs the runtime: it could not be started again
    transship setup --remove
    if [ -d /run/systemd/system ]; then
        systemctl disable --now transship-agent.service || true
    fi
fi
find /{LIBRARY} -name __pycache__ -prune -exec rm -rf {{}} +
""",
    "postrm": """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
if [ "$1" = purge ]; then
    rm -rf /etc/transship /var/lib/transship
fi
""",
}


def build(folder: Path) -> Path:
    """Write the package into a folder."""
    roots.ensure(with_docker28=False)
    [packages] = (roots.venv().folder / "opt/transship/lib").glob("python3.*/site-packages")
    version = tomllib.loads((roots.CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    architecture = shell.run(["dpkg", "--print-architecture"]).stdout.strip()
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"transship_{version}_{architecture}.deb"
    before = os.umask(0o022)
    try:
        with TemporaryDirectory() as place:
            root = Path(place) / "root"
            _fill(root, packages, version)
            _describe(root, packages.parent.name.removeprefix("python"), version, architecture)
            # gzip is quick, and every dpkg and every checker of packages reads it
            shell.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(root), str(made)], timeout=300)
    finally:
        os.umask(before)
    return made


def _fill(root: Path, packages: Path, version: str) -> None:
    unwanted = shutil.ignore_patterns("__pycache__", "pip", "pip-*", "transship*", "*.pth")
    shutil.copytree(packages, root / LIBRARY, ignore=unwanted)
    with zipfile.ZipFile(build_wheel()) as wheel:
        wheel.extractall(root / LIBRARY)
    _write(root / "usr/bin/transship", PROGRAM, 0o755)
    for name, place in SYSTEMD.items():
        text = (roots.CHECKOUT / "systemd" / name).read_text().replace("@TRANSSHIP@", "/usr/bin/transship")
        _write(root / place, text)
    _write(root / "etc/transship/agent.toml", (roots.CHECKOUT / "systemd/agent.toml.example").read_text(), 0o600)
    for kind, place in COMPLETION.items():
        _write(root / place, completion(kind))
    _write(root / "usr/share/doc/transship/copyright", COPYRIGHT)
    news = f"transship ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md of the sources.\n\n"
    news += f" -- transship <transship@transship.invalid>  {formatdate()}\n"
    (root / "usr/share/doc/transship/changelog.gz").write_bytes(gzip.compress(news.encode(), mtime=0))


def completion(kind: str) -> str:
    """What a shell needs for TAB, as the command line itself gives it."""
    env = {**os.environ, "_TRANSSHIP_COMPLETE": f"source_{kind}"}
    argv = [sys.executable, "-m", "agent.cli.main"]
    text = shell.run(argv, env=env, cwd=roots.CHECKOUT).stdout.strip() + "\n"
    # zsh loads the file when TAB is first pressed, and calls it as the function: it has to complete at once
    return text + '_transship_completion "$@"\n' if kind == "zsh" else text


def _describe(root: Path, python: str, version: str, architecture: str) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]
    major, minor = python.split(".")
    control = CONTROL.format(
        version=version,
        architecture=architecture,
        kib=sum(path.stat().st_size for path in files) // 1024,
        needs=", ".join([f"python3 (>= {python})", f"python3 (<< {major}.{int(minor) + 1})", *NEEDS]),
    )
    _write(root / "DEBIAN/control", control)
    _write(root / "DEBIAN/conffiles", "/etc/transship/agent.toml\n")
    _write(root / "DEBIAN/md5sums", "".join(sums))
    for name, script in SCRIPTS.items():
        _write(root / "DEBIAN" / name, script, 0o755)


def _write(file: Path, text: str, mode: int = 0o644) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
