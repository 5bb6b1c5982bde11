"""The words of the command line, its settings, its keys, and what it imports to answer quickly."""

import json
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.base import config, pki
from agent.base.errors import Refused
from agent.cli import checks, keys, main, setup
from agent.cli.checks import Verdict
from agent.cli.output import OK, REFUSED, Out
from agent.cli.settings import Options, load, user_file

# --- the words


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["hosts"],
        ["ps"],
        ["migrate"],
        ["cancel"],
        ["migrations"],
        ["resolve"],
        ["events"],
        ["agent"],
        ["setup"],
        ["pki"],
        ["pki", "init"],
        ["pki", "host"],
        ["version"],
    ],
)
def test_every_command_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert "Usage: transship" in said
    if words and words not in (["agent"], ["pki"]):
        assert "--json" in said


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["migrate", "web"],
        ["resolve", "m-0123456789abcdef"],
        ["resolve", "m-0123456789abcdef", "--commit", "--abort"],
        ["setup", "--remove", "--check"],
        ["setup", "--purge"],
        ["migrate", "web", "--to", "b", "--max-blackout", "0"],
    ],
)
def test_wrong_usage_is_refused_in_words_and_as_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(words) == REFUSED
    assert "Error" in capsys.readouterr().err
    if words != ["fly"]:
        assert main.run([*words, "--json"]) == REFUSED
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad-command"


def test_version_in_words_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["version"]) == 0
    assert capsys.readouterr().out.startswith("transship ")
    assert main.run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == 1


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom agent.cli import main\nmain.run(['--help'])\n"
        "heavy = 'pydantic', 'aiomqtt', 'aiohttp', 'asyncio', 'cryptography', 'uvloop'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "[]"


def test_agent_is_run_with_its_file_and_verbosity(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path, int]] = []

    class Daemon:
        @staticmethod
        def main(file: Path, verbose: int) -> int:
            calls.append((file, verbose))
            return 7

    monkeypatch.setitem(sys.modules, "agent.daemon", Daemon)
    assert main.run(["agent", "--config", "/x.toml", "-vv"]) == 7
    assert calls == [(Path("/x.toml"), 2)]


# --- where the broker is


def settings(tmp_path: Path, options: Options | None = None, **environment: str) -> config.Broker:
    return load(
        options or Options(),
        agent_file=tmp_path / "agent.toml",
        environment={"XDG_CONFIG_HOME": str(tmp_path / "config"), **environment},
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "config/transship").mkdir(parents=True)
    (tmp_path / "config/transship/cli.toml").write_text('[broker]\nhost = "from-cli"\nusername = "cli"\n')
    (tmp_path / "agent.toml").write_text(
        'host = "node-a"\n[broker]\nhost = "from-agent"\nport = 1234\n[peer]\nallow = []\n'
    )
    return tmp_path


def test_earlier_places_win_and_the_rest_comes_from_later_ones(files: Path) -> None:
    found = settings(files)
    assert (found.host, found.port, found.username) == ("from-cli", 1234, "cli")
    found = settings(files, TRANSSHIP_BROKER__HOST="from-env", TRANSSHIP_BROKER__PORT="99", TRANSSHIP_BROKER__TLS="")
    assert (found.host, found.port, found.username, found.tls) == ("from-env", 99, "cli", True)
    found = settings(files, Options(broker="from-option:7"), TRANSSHIP_BROKER__HOST="from-env")
    assert (found.host, found.port) == ("from-option", 7)


@pytest.mark.parametrize(
    ("said", "host", "port"),
    [
        ("a", "a", 8883),
        ("a:1", "a", 1),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("[fe80::1]:1", "fe80::1", 1),
        ("[fe80::1]", "fe80::1", 8883),
        ("fe80::1", "fe80::1", 8883),
    ],
)
def test_broker_option_takes_a_port(tmp_path: Path, said: str, host: str, port: int) -> None:
    found = settings(tmp_path, Options(broker=said))
    assert (found.host, found.port) == (host, port)


def test_no_tls_needs_no_authority(tmp_path: Path) -> None:
    assert settings(tmp_path).ca == Path("/etc/transship/pki/ca.crt")
    assert settings(tmp_path, Options(tls=False)).ca is None
    assert settings(tmp_path, TRANSSHIP_BROKER__TLS="false").ca is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host = ", "is no TOML"),
        ('[broker]\nhots = "x"', "hots is not a field"),
        ('[brokr]\nhost = "x"', "knows the table [broker] only, not brokr"),
        ('broker = "x"', "must be a table"),
        ('[broker]\nport = "x"', 'port is "x"'),
    ],
)
def test_wrong_settings_are_said(files: Path, text: str, said: str) -> None:
    (files / "config/transship/cli.toml").write_text(text)
    with pytest.raises(Refused) as caught:
        settings(files)
    assert said in caught.value.message


def test_users_file_follows_xdg() -> None:
    assert user_file({"XDG_CONFIG_HOME": "/x"}) == Path("/x/transship/cli.toml")
    assert user_file({}) == Path.home() / ".config/transship/cli.toml"


# --- keys


def test_authority_and_host_fit_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, host = tmp_path / "ca", tmp_path / "node-a"
    assert main.run(["pki", "init", "--out", str(ca)]) == OK
    words = ["pki", "host", "node-a", "--ip", "10.0.0.1", "--dns", "a.example", "--ca-dir", str(ca), "--out", str(host)]
    assert main.run([*words, "--json"]) == OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["host"] == "node-a"
    assert {file.name: file.stat().st_mode & 0o777 for file in host.iterdir()} == {
        "host.crt": 0o644,
        "host.key": 0o600,
        "ca.crt": 0o644,
    }
    assert (ca / "ca.key").stat().st_mode & 0o777 == 0o600
    assert pki.common_name((host / "host.crt").read_bytes()) == "node-a"
    shown = checks.handshake(host / "ca.crt", host / "host.crt", host / "host.key")
    assert set(shown["subjectAltName"]) == {  # type: ignore[call-overload]
        ("DNS", "node-a"),
        ("DNS", "a.example"),
        ("IP Address", "10.0.0.1"),
    }


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    out = Out()
    keys.make_authority(out, tmp_path, "test", 1)
    before = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(Refused, match="an authority already"):
        keys.make_authority(out, tmp_path, "test", 1)
    wanted = keys.HostWanted("a", (), (), 1)
    keys.make_host(out, wanted, tmp_path, tmp_path / "a", force=False)
    with pytest.raises(Refused, match="a certificate already"):
        keys.make_host(out, wanted, tmp_path, tmp_path / "a", force=False)
    keys.make_host(out, wanted, tmp_path, tmp_path / "a", force=True)
    assert (tmp_path / "ca.key").read_bytes() == before
    keys.make_host(out, wanted, tmp_path, tmp_path, force=False)  # beside the authority, on its own host
    assert (tmp_path / "ca.key").read_bytes() == before


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (keys.HostWanted("Node A", (), (), 1), "is no host name"),
        (keys.HostWanted("a", (), ("a.example",), 1), "is no address"),
        (keys.HostWanted("a", (), (), 1), "there is no authority in"),
    ],
)
def test_wrong_wishes_are_refused(tmp_path: Path, wanted: keys.HostWanted, said: str) -> None:
    with pytest.raises(Refused, match=said):
        keys.make_host(Out(), wanted, tmp_path, tmp_path / "a", force=False)


# --- the check of a host


def with_certificates(tmp_path: Path, name: str = "node-a", days: int = 365, ca: bytes = b"") -> config.Settings:
    authority, key = pki.make_ca("test", 365)
    certificate, secret = pki.issue(authority, key, name, [name], [], days)
    for file, content in (("ca.crt", ca or authority), ("host.crt", certificate), ("host.key", secret)):
        (tmp_path / file).write_bytes(content)
        (tmp_path / file).chmod(0o600)
    link = config.PeerLink(ca=tmp_path / "ca.crt", certificate=tmp_path / "host.crt", key=tmp_path / "host.key")
    return config.Settings(host="node-a", peer=link)


def verdicts(findings: list[checks.Finding]) -> list[tuple[Verdict, str]]:
    return [(one.verdict, one.said) for one in findings]


def test_good_certificates_are_good(tmp_path: Path) -> None:
    assert verdicts(checks._certificates(with_certificates(tmp_path))) == [
        (Verdict.GOOD, "name node-a"),
        (Verdict.GOOD, "are valid for 364 days"),
    ]


def test_certificates_that_end_soon_are_doubtful(tmp_path: Path) -> None:
    assert (Verdict.DOUBTFUL, "end in 9 days") in verdicts(checks._certificates(with_certificates(tmp_path, days=10)))


def test_certificates_of_another_host_are_of_no_use(tmp_path: Path) -> None:
    found = verdicts(checks._certificates(with_certificates(tmp_path, "node-b")))
    assert found[0] == (Verdict.MISSING, "name node-b, not node-a")


def test_open_key_is_doubtful(tmp_path: Path) -> None:
    ours = with_certificates(tmp_path)
    ours.peer.key.chmod(0o644)
    assert checks._certificates(ours)[-1].verdict is Verdict.DOUBTFUL


@pytest.mark.parametrize("spoil", ["expired", "other authority", "gone", "garbage", "key of another"])
def test_useless_certificates_are_found(tmp_path: Path, spoil: str) -> None:
    ours = with_certificates(tmp_path, days=0 if spoil == "expired" else 1)
    match spoil:
        case "other authority":
            ours.peer.ca.write_bytes(pki.make_ca("another", 1)[0])
        case "gone":
            ours.peer.key.unlink()
        case "garbage":
            ours.peer.certificate.write_text("garbage")
        case "key of another":
            certificate, key = pki.make_ca("x", 1)
            ours.peer.key.write_bytes(pki.issue(certificate, key, "x", [], [], 1)[1])
    [finding] = checks._certificates(ours)
    assert finding.verdict is Verdict.MISSING
    assert finding.hint


def test_handshake_ends_even_if_it_can_not(tmp_path: Path) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        checks.handshake(tmp_path / "a", tmp_path / "b", tmp_path / "c")


class FakeShell:
    """Says what a host's tools would say."""

    def __init__(self, **said: Any) -> None:
        self._said = said

    async def run(self, *argv: str, **options: Any) -> Any:
        from agent.base.errors import CommandFailed
        from agent.base.shell import Done

        word = "_".join(argv).replace("--", "")
        if word not in self._said:
            raise CommandFailed(f"{argv[0]} is not installed")
        code, out, err = self._said[word]
        return Done(argv, code, out, tuple(err), 0.0)


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ("Version: 4.2.1\n", Verdict.GOOD),
        ("Version: 5.0\n", Verdict.GOOD),
        ("Version: 4.1.1", Verdict.DOUBTFUL),
        ("?", Verdict.DOUBTFUL),
    ],
)
async def test_age_of_criu(version: str, verdict: Verdict) -> None:
    finding = await checks._criu(FakeShell(criu_version=(0, version, [])))  # type: ignore[arg-type]
    assert finding.verdict is verdict


async def test_whole_check_of_a_bare_host_lists_everything_and_changes_nothing(tmp_path: Path) -> None:
    places = setup.Places(
        root=tmp_path,
        settings=tmp_path / "agent.toml",
        daemon_json=tmp_path / "daemon.json",
        docker=f"unix://{tmp_path}/docker.sock",
    )
    (tmp_path / "agent.toml").write_text(
        '[broker]\nhost = "127.0.0.1"\nport = 1\ntls = false\n[peer]\nallow = ["node-b"]\n'
    )
    findings = await checks.look(places, FakeShell(criu_check=(1, "", ["Error (x): no memory tracking"])))  # type: ignore[arg-type]
    found = {one.what: one for one in findings}
    assert found["settings"].verdict is Verdict.GOOD
    assert found["peers"].verdict is Verdict.GOOD
    assert found["criu check"].said == "Error (x): no memory tracking"
    for what in ("dockerd", "launcher", "criu", "criu check", "runc", "/run", "folder", "certificates", "broker"):
        assert found[what].verdict is Verdict.MISSING, what
    assert [one.name for one in tmp_path.iterdir()] == ["agent.toml"]


@pytest.mark.parametrize("text", ["host = ", '[brokr]\nx = "y"'])
async def test_check_of_wrong_settings_says_what_is_wrong(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.toml").write_text(text)
    places = setup.Places(root=tmp_path, settings=tmp_path / "agent.toml")
    _, finding = checks.settings(places)
    assert finding.verdict is Verdict.MISSING
    assert "brokr is not a field" in finding.said or "no TOML" in finding.said
