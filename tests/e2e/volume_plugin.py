"""A volume plugin of Docker whose volumes every host has, in a folder that the hosts share: NAME FOLDER SCOPE [broken].

Runs on a host of the lab, with the standard library alone, and listens where dockerd looks for plugins.
"""

import http.server
import json
import os
import shutil
import socketserver
import sys
from pathlib import Path
from typing import Any


class Plugin(http.server.BaseHTTPRequestHandler):
    folder: Path
    scope: str
    broken: bool

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        said = json.dumps(self.answer(self.path.partition(".")[2], asked.get("Name", ""))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.plugins.v1+json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def answer(self, verb: str, name: str) -> dict[str, Any]:
        place = self.folder / name
        match verb:
            case "Activate":
                return {"Implements": ["VolumeDriver"]}
            case "Capabilities":
                return {"Capabilities": {"Scope": self.scope}}
            case "List":
                return {"Volumes": [{"Name": path.name, "Mountpoint": str(path)} for path in self.folder.iterdir()]}
            case "Create":
                place.mkdir(exist_ok=True)
            case "Remove":
                shutil.rmtree(place)
            case "Mount" if self.broken:
                return {"Err": "it is out of order"}
            case "Get" if not place.is_dir():
                return {"Err": f"there is no {name}"}
            case "Get":
                return {"Volume": {"Name": name, "Mountpoint": str(place)}}
        return {"Mountpoint": str(place), "Err": ""}

    def log_message(self, *_: object) -> None:
        return

    def address_string(self) -> str:
        return "dockerd"


def main(name: str, folder: str, scope: str, *broken: str) -> None:
    Plugin.folder, Plugin.scope, Plugin.broken = Path(folder), scope, bool(broken)
    socket = Path(f"/run/docker/plugins/{name}.sock")
    socket.parent.mkdir(parents=True, exist_ok=True)
    with socketserver.ThreadingUnixStreamServer(str(socket), Plugin) as server:
        print(os.getpid(), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
