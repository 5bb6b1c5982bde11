"""Does in a container what a test tells it over a connection: one line of Python at a time, answered by one of JSON.

The connection is one of those that have to survive the move. Standard library only.
"""

import json
import socket
import threading
import time
import traceback
from typing import Any

PORT = 7100


def serve(connection: socket.socket, known: dict[str, Any]) -> None:
    with connection, connection.makefile("rw") as file:
        for line in file:
            answer: dict[str, object] = {}
            try:
                code = json.loads(line)
                try:
                    answer["value"] = eval(code, known)
                except SyntaxError:
                    exec(code, known)
            except Exception as error:
                answer["error"] = f"{type(error).__name__}: {error}"
                answer["trace"] = traceback.format_exc()
            file.write(json.dumps(answer, default=repr) + "\n")
            file.flush()


def main() -> None:
    known: dict[str, Any] = {"socket": socket, "threading": threading, "time": time}
    with socket.create_server(("", PORT), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection, known), daemon=True).start()


if __name__ == "__main__":
    main()
