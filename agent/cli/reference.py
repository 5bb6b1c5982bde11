"""The pages of every command and every setting, made of the code: `python -m agent.cli.reference`.

Writes docs/commands.md from what typer knows of the command line, docs/settings.md from the models of
agent/base/config.py, and the files of docs/examples into docs/contract.md. Nothing is said there that is not in
these; a test holds the pages against them.
"""

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agent.base import config
from agent.cli.main import app

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"
MADE = "<!-- Written by `python -m agent.cli.reference` from {}. Do not edit. -->\n"

COMMANDS = """\
# Commands

What `transship COMMAND --help` says, all of it on one page. Options of `transship` itself stand before the command:
`transship --broker 192.0.2.1 hosts`. With `--json` every line is one JSON object.
"""
SETTINGS = """\
# Settings

The agent's settings are in `/etc/transship/agent.toml`, by tables as here; `transship setup` puts an example there.
What is said in the environment goes before the file: `TRANSSHIP_HOST` for `host`, `TRANSSHIP_BROKER__HOST` for `host`
in `[broker]`. A key that is unknown, or a value out of shape, is said, and the agent does not start. They are read
once: `systemctl restart transship-agent` takes up others, and touches no container.

The command line reads the table `[broker]` of this file, and that of `~/.config/transship/cli.toml` before it.
"""


def pages() -> dict[str, str]:
    """Name and content of each page."""
    contract = (DOCUMENTS / "contract.md").read_text()
    return {"commands.md": commands(), "settings.md": settings(), "contract.md": with_files(contract)}


def with_files(page: str) -> str:
    """The page with the code of each file that it names in the block below the name."""

    def put(found: re.Match[str]) -> str:
        return f"{found[1]}{(DOCUMENTS / found[2]).read_text()}```"

    return re.sub(r"(<!-- file: (\S+) -->\n```[a-z]+\n)(?s:.*?)```", put, page)


def commands() -> str:
    """Every command, those of groups too, in the order of the help."""
    root: Any = typer.main.get_command(app)
    parts = [MADE.format("agent/cli"), COMMANDS, "## transship\n", *_command(root)]
    for words, command in _walk(root, "transship"):
        parts += [f"## {words}\n", *_command(command, words)]
    return "\n".join(parts)


def _walk(group: Any, words: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{words} {name}", command
        if hasattr(command, "commands"):
            yield from _walk(command, f"{words} {name}")


def _command(command: Any, words: str = "transship") -> Iterator[str]:
    yield inspect.cleandoc(command.help or "") + "\n"
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    usage = [words, *("[OPTIONS]" for _ in options[:1]), *(_argument(one) for one in arguments)]
    usage += ["COMMAND ..."] if hasattr(command, "commands") else []
    yield f"```\n{' '.join(usage)}\n```\n"
    rows = [(_argument(one), one) for one in arguments if one.help] + [(_option(one), one) for one in options]
    if rows:
        yield "| | |\n|---|---|"
        yield "\n".join(f"| `{_cell(name)}` | {_cell(_said(one))} |" for name, one in rows) + "\n"


def _argument(parameter: Any) -> str:
    name: str = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join(sorted(parameter.opts, key=len, reverse=True))
    if parameter.secondary_opts:
        return f"{names}/{', '.join(parameter.secondary_opts)}"
    if parameter.is_flag or parameter.count:
        return names
    return f"{names} {parameter.metavar or parameter.name.upper()}"


def _said(parameter: Any) -> str:
    said = [parameter.help or ""]
    if parameter.param_type_name == "option" and parameter.required:
        said.append("Required.")
    default = parameter.default
    if not (parameter.required or default in (None, False, "", ()) or parameter.count or callable(default)):
        said.append(f"Default: `{default}`.")
    return " ".join(said).strip()


def settings() -> str:
    """Every key of agent.toml, with its default and what config.py says of it."""
    model = config.Settings
    tables = {name: field for name, field in model.model_fields.items() if _is_table(field)}
    single = {name: field for name, field in model.model_fields.items() if name not in tables}
    parts = [MADE.format("agent/base/config.py"), SETTINGS, "## At the top\n", _table(model, single)]
    for name, field in tables.items():
        section: type[BaseModel] = field.annotation  # type: ignore[assignment]
        parts += [f"## [{name}]\n", f"{inspect.getdoc(section)}\n", _table(section, section.model_fields)]
    return "\n".join(parts)


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _table(model: type[BaseModel], fields: dict[str, FieldInfo]) -> str:
    said = _docstrings(model)
    rows = [
        f"| `{name}` | {_kind(field.annotation)} | {_default(model, name, field)} | {_cell(said.get(name, ''))} |"
        for name, field in fields.items()
    ]
    return "\n".join(["| key | | default | |", "|---|---|---|---|", *rows, ""])


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """What stands below each field in the source; Python itself throws it away."""
    [body] = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(body, ast.ClassDef)
    said = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            said[field.target.id] = re.sub(r"\s+", " ", text)
    return said


def _default(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if model is config.Settings and name == "host":
        return "the host name"
    default = field.default
    if default is None or default == "":
        return ""
    if isinstance(default, tuple):
        return "`[]`" if not default else "`" + str([str(one) for one in default]) + "`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if isinstance(default, int | float) else f'`"{default}"`'


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f'`"{one}"`' for one in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_kind(one) for one in get_args(annotation) if one is not type(None))
    if get_origin(annotation) is tuple:
        return f"list of {_kind(get_args(annotation)[0])}s"
    names = {"bool": "true or false", "int": "number", "float": "number", "Path": "path", "str": "text"}
    return names.get(getattr(annotation, "__name__", ""), "name")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write() -> None:
    for name, text in pages().items():
        (DOCUMENTS / name).write_text(text)


if __name__ == "__main__":
    write()
