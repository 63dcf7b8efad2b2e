"""The API server's client where no API server is needed: a handshake that is broken off, a certificate, times."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bfp.errors import InputError
from bfp.targets import kube_api
from bfp.targets.kube_api import KubeApi, as_second, instant_ns

pytest.importorskip("kubernetes", reason="the client of Kubernetes is not installed: pip install 'bfp[cluster]'")

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\nConnection: close\r\n\r\n{"gitVersion":"x"}'


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Answers over TLS, after it has broken off as many handshakes as the list that it yields says."""
    key, certificate = tmp_path / "key", tmp_path / "crt"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    broken_off = [0]
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                if broken_off[0] > 0:
                    broken_off[0] -= 1
                    connection.recv(4096)
                    continue
                try:
                    with context.wrap_socket(connection, server_side=True) as safe:
                        safe.recv(4096)
                        safe.sendall(ANSWER)
                except OSError:
                    pass

    threading.Thread(target=serve, daemon=True).start()
    url = f"https://127.0.0.1:{listening.getsockname()[1]}"
    contexts = {"careless": {"insecure-skip-tls-verify": True}, "careful": {}}
    kubeconfig = {
        "current-context": "careful",
        "clusters": [{"name": name, "cluster": {"server": url, **more}} for name, more in contexts.items()],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "u"}} for name in contexts],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(kube_api, "PAUSE_S", 0.1)
    yield broken_off
    listening.close()


def test_a_handshake_that_is_broken_off_is_tried_again(server: list[int]) -> None:
    server[0] = 3
    assert KubeApi("careless", where="--on lab").get("/version") == {"gitVersion": "x"}
    assert server[0] == 0


def test_a_certificate_that_is_not_trusted_is_told_at_once(server: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "FIRST_S", 1e9)
    with pytest.raises(InputError, match="CERTIFICATE_VERIFY_FAILED"):
        KubeApi("careful", where="--on lab").get("/version")


@pytest.mark.parametrize(
    ("written", "second", "ns"),
    [
        ("2026-01-01T00:00:09Z", "2026-01-01T00:00:09Z", 0),
        ("2026-01-01T01:00:09.5+01:00", "2026-01-01T00:00:09Z", 500_000_000),
        ("2025-12-31T18:30:09.000000001-05:30", "2026-01-01T00:00:09Z", 1),
    ],
)
def test_a_kubelet_s_time_is_an_instant(written: str, second: str, ns: int) -> None:
    found = instant_ns(written)
    assert found is not None
    assert (as_second(found), found % 1_000_000_000) == (second, ns)


def test_the_kubelet_s_own_words_have_no_time() -> None:
    assert instant_ns("unable") is None
    assert instant_ns("") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            b"clusters: [",
            r"no kubeconfig \(line 1: expected the node content, but found '<stream end>'\): put it right",
        ),
        (b"my token", "no kubeconfig: put it right"),
        (b"\xff\xfe\x00", "no kubeconfig: put it right"),
        (b"apiVersion: v1\ncurrent-context: a\ncontexts: 3\n", "no kubeconfig: put it right"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_a_kubeconfig_that_is_none_is_told_with_its_file(
    text: bytes | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    if text is None:
        file.mkdir()
    else:
        file.write_bytes(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(InputError, match=rf"--on lab: {file}: {told}; KUBECONFIG names another file") as caught:
        KubeApi(None, where="--on lab").get("/version")
    assert "my token" not in str(caught.value)


def test_a_token_in_the_wrong_place_of_a_kubeconfig_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config"
    written = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://k"}}],
        "users": [{"name": "u", "token": "hunter2"}],  # which belongs below `user`
    }
    file.write_text(yaml.safe_dump(written))
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(InputError, match="Expected key user in") as caught:
        KubeApi(None, where="--on lab").get("/version")
    assert "hunter2" not in str(caught.value)


def test_nothing_is_on_the_screen_of_a_program_for_credentials_that_fails(server: list[int], tmp_path: Path) -> None:
    file = tmp_path / "config"
    kubeconfig = yaml.safe_load(file.read_text())
    program = {"apiVersion": "client.authentication.k8s.io/v1", "command": "false", "interactiveMode": "Never"}
    kubeconfig["users"] = [{"name": "u", "user": {"exec": program}}]
    file.write_text(yaml.safe_dump(kubeconfig))
    code = "from bfp.targets.kube_api import KubeApi; print(KubeApi('careless', where='x').get('/version'))"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (asked.stdout, asked.stderr) == ("{'gitVersion': 'x'}\n", "")
