"""The lab on the command line: `python -m lab up|down|status|access|sh|logs|cut|heal|slow|vm`."""

import argparse
import os
import shlex
import sys

from lab.host import OPTIONS, Engine, HostSpec
from lab.lab import DEFAULT_HOSTS, Lab, remove
from lab.service import Mode
from lab.shell import LabError
from lab.vm import checkout


def main() -> int:
    options = _parser().parse_args()
    try:
        if options.verb == "vm":
            return _vm(options)
        _do(options)
    except LabError as error:
        print(f"lab: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _do(options: argparse.Namespace) -> None:
    match options.verb:
        case "up":
            hosts = [HostSpec.parse(text) for text in options.host] or DEFAULT_HOSTS
            _print_status(Lab.up(options.lab, hosts, mode=Mode.INSTALL if options.install else Mode.DEVELOP))
        case "down":
            remove(options.lab)
        case "status":
            _print_status(Lab.load(options.lab))
        case "access":
            _print_access(Lab.load(options.lab))
        case "sh":
            lab = Lab.load(options.lab)
            node = lab.broker.node if options.host == lab.broker.node.name else lab[options.host].node
            node.become(options.command or ["bash"])
        case "logs":
            _print_logs(Lab.load(options.lab), options.host)
        case "cut":
            Lab.load(options.lab).cut(options.link)
        case "heal":
            Lab.load(options.lab).heal(options.link)
        case "slow":
            Lab.load(options.lab).slow(options.link, options.rate)


def _vm(options: argparse.Namespace) -> int:
    def output(text: str) -> None:
        print(text, end="", flush=True)

    def say(line: str) -> None:
        print(f"lab: {line}", file=sys.stderr)

    return checkout.run(options.command, options.seconds, output, say)


def _print_status(lab: Lab) -> None:
    for name, state in lab.status().items():
        kind = lab[name].spec.engine if name in lab.hosts else "mosquitto"
        address = (lab[name].node if name in lab.hosts else lab.broker.node).address
        print(f"{name:12} {kind:10} {address.v4:12} {state}")


def _print_access(lab: Lab) -> None:
    access = lab.broker.local_access()
    said = {"HOST": access.address, "PORT": access.port, "CA": access.ca_file}
    for key, value in {**said, "USERNAME": access.user, "PASSWORD": access.password}.items():
        print(f"export TRANSSHIP_BROKER__{key}={shlex.quote(str(value))}")


def _print_logs(lab: Lab, name: str) -> None:
    node, daemons = lab.broker.node, ["mosquitto"]
    if name != node.name:
        node, daemons = lab[name].node, ["containerd", "dockerd", "transship-agent"]
    for daemon in daemons:
        print(f"==> {daemon} <==", node.log(daemon), sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description="Real Docker hosts on one machine.")
    parser.add_argument("--lab", default=os.environ.get("TRANSSHIP_LAB", "lab"), help="name of the lab (default: lab)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    kinds = f"engines: {', '.join(Engine)}; options: {', '.join(OPTIONS)}; may be given several times"
    up = verbs.add_parser("up", help="make the lab, removing an older one of the same name")
    up.add_argument("--host", action="append", default=[], metavar="NAME=ENGINE[,OPTION]...", help=kinds)
    up.add_argument("--install", action="store_true", help="install the agent as a user would")
    verbs.add_parser("down", help="remove the lab")
    verbs.add_parser("status", help="say how each machine is")
    verbs.add_parser("access", help="print where the lab's broker is, for a controller's shell on this machine")
    sh = verbs.add_parser("sh", help="run a command, or a shell, on a machine")
    sh.add_argument("host")
    sh.add_argument("command", nargs=argparse.REMAINDER)
    verbs.add_parser("logs", help="print the logs of a machine's daemons").add_argument("host")
    for verb, text in (("cut", "pull a machine's cable"), ("heal", "undo cut and slow")):
        verbs.add_parser(verb, help=text).add_argument("link")
    slow = verbs.add_parser("slow", help="limit a machine's cable")
    slow.add_argument("link")
    slow.add_argument("rate", help="as tc writes it, for example 100mbit")
    vm = verbs.add_parser("vm", help="run a command in this checkout inside an emulated machine with a stock kernel")
    vm.add_argument("--seconds", type=float, default=900, help="the most it may take (default: 900)")
    vm.add_argument("command", nargs="+", metavar="COMMAND", help="for example: python -m lab up; options after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
