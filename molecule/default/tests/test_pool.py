# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What NAS that answer together ask each other by, and who else may; the pool itself has a scenario
of its own.
"""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import INVENTORY, ROOT
from testinfra.host import Host

Playbook = Callable[..., subprocess.CompletedProcess[str]]
MEMBER = "member.nas-assistant.internal"
PORT = 8443
TLS = "/etc/nas-assistant/tls"
MINE = ("member.crt", "member.key")
DRAINED = "/run/nas-assistant-drained"
# What a client could write, of who it is.
FORGED = {"X-Forwarded-For": "192.0.2.7", "X-Real-IP": "192.0.2.7", "Forwarded": "for=192.0.2.7"}
FORGED6 = {"X-Forwarded-For": "::1", "X-Real-IP": "::1", "Forwarded": 'for="[::1]"'}
AWAY6 = "2001:db8::5"
AT_HOME = ("/admin", "/metrics", "/trust/", "/console/")
CA = {"issuer": "ca"}
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


@pytest.fixture(scope="module", autouse=True)
def pool(playbook: Playbook, nas_name: str) -> Iterator[None]:
    """This NAS as the only member, with an admin page for others than us."""
    wish: dict[str, Any] = {"proxy_pool": [nas_name], "proxy_certificate": CA}
    wish["proxy_admin_from"] = ["192.0.2.0/24"]
    # The place in the site alone; Cockpit itself is not there.
    wish["console_state"] = "present"
    for arguments in (("--check",), ()):
        done = playbook("proxy", *arguments, **wish)
        assert done.returncode == 0, done.stdout
    assert "changed=0" in playbook("proxy", **wish).stdout
    yield
    back = playbook("proxy")
    assert back.returncode == 0, back.stdout
    assert "changed=0" in playbook("proxy").stdout


def by_hand(host: Host, path: str, certificate: str = "", key: str = "", bearer: str = "") -> str:
    """Ask the listener for members, from the NAS itself; return what it says."""
    head = f"GET {path} HTTP/1.1\\r\\nHost: {MEMBER}\\r\\nConnection: close\\r\\n"
    head += f"Authorization: Bearer {bearer}\\r\\n\\r\\n"
    ours = f"-cert {TLS}/{certificate} -key {TLS}/{key}" if certificate else ""
    verified = f"-CAfile {TLS}/ca.crt -verify_return_error -verify_hostname {MEMBER}"
    client = f"openssl s_client -quiet -connect 127.0.0.1:{PORT} {verified} {ours}"
    return str(host.run(f"printf '{head}' | {client} 2>/dev/null").stdout)


def test_clients_trust_the_ca_and_are_answered_through_the_pool(
    address: str, key: str, credentials: Path, nas_name: str
) -> None:
    context = ssl.create_default_context(cafile=str(credentials / "ca.crt"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert oct((credentials / "ca.key").stat().st_mode & 0o777) == "0o600"
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(
        base_url=f"https://{address}", verify=context, trust_env=False, headers=headers, timeout=60
    ) as client:
        answer = client.post("/v1/chat/completions", json=HELLO)
        assert (answer.status_code, answer.headers["x-nas"]) == (200, nas_name)
        # Pages, and what is each NAS's own, do not go through it.
        for path in ("/", "/readyz"):
            own = client.get(path)
            assert (own.status_code, own.headers.get("x-nas")) == (200, None)
        for path in (*AT_HOME, "/admin/status", "/trust/nas.crt"):
            for more in ({}, FORGED):
                away = client.get(path, headers=more)
                assert (away.status_code, away.json()["error"]["code"]) == (403, "not_at_home")
        assert client.get("/v1/models", headers={"Authorization": "x"}).status_code == 401
    # Nor by HTTP, by which those at home may see how to trust it.
    plain = httpx.get(f"http://{address}/trust/", headers=FORGED, trust_env=False)
    assert (plain.status_code, plain.json()["error"]["code"]) == (403, "not_at_home")


def test_what_is_for_those_at_home_is_so_over_ipv6(host: Host, address: str) -> None:
    """The NAS itself may see it, by an address that stands for no other machine."""

    def ask(at: str, path: str, headers: dict[str, str]) -> str:
        lines = [f"GET {path} HTTP/1.1", f"Host: {address}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "".join(f"{line}\\r\\n" for line in [*lines, ""])
        client = f"openssl s_client -quiet -connect [{at}]:443"
        answer = str(host.run(f"printf '{head}' | {client} 2>/dev/null").stdout)
        return answer.partition("\r")[0].removeprefix("HTTP/1.1 ")

    switch = "sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0"
    host.check_output(f"{switch} && ip address add {AWAY6}/128 dev lo")
    try:
        for path in AT_HOME:
            # Who has no key, and a console that does not run.
            known = {"/metrics": "401", "/console/": "503"}.get(path, "200")
            assert ask("::1", path, {}).split()[0] == known, path
            for more in ({}, FORGED, FORGED6):
                assert ask(AWAY6, path, more) == "403 Forbidden", path
    finally:
        host.check_output(f"ip address del {AWAY6}/128 dev lo")


def test_only_members_may_ask(host: Host, address: str, nas_name: str) -> None:
    said = by_hand(host, "/v1/models", *MINE)
    assert said.startswith("HTTP/1.1 401")  # a key is wanted here too
    assert f"X-Nas: {nas_name}" in said
    # What is for the owner of this NAS alone is not to be had this way.
    for path in ("/admin/status", "/metrics", "/"):
        assert by_hand(host, path, *MINE).startswith("HTTP/1.1 404")
    found = host.file(f"{TLS}/member.key")
    assert (found.user, found.mode) == ("root", 0o600)
    # Nobody, and who has another certificate of the same CA: the one that clients see.
    for others in ((), ("server.crt", "server.ecc.key")):
        assert by_hand(host, "/v1/models", *others) == ""
    # From outside the port is closed, since there is no other member.
    with pytest.raises(httpx.ConnectTimeout):
        httpx.get(f"https://{address}:{PORT}/", timeout=2, trust_env=False)


def test_certificates_alone_are_renewed_by_their_tag(
    host: Host, address: str, key: str, credentials: Path, nas_name: str, playbook: Playbook
) -> None:
    """Those of clients and of members; what asks in between goes by the old or the new one."""
    wish: dict[str, Any] = {"proxy_pool": [nas_name], "proxy_admin_from": ["192.0.2.0/24"]}
    # All have less than that left.
    wish["proxy_certificate"] = {"issuer": "ca", "days": 2000, "renew_days": 1999}
    look = "openssl x509 -noout -serial -in"
    serials = f"cd {TLS} && {look} server.crt && {look} member.crt && {look} ca.crt"
    before = host.check_output(serials).splitlines()
    timer = "/etc/systemd/system/nas-assistant-certificate.service"
    # Nobody but the CA can make them, so the NAS does not try.
    assert "nas-assistant-renew" not in host.file(timer).content_string
    folder = host.check_output("mktemp -d")
    unit = host.check_output(f"sed -n 's/^ExecStart=//p' {timer}")
    host.check_output(unit.replace('"/var/lib/prometheus/node-exporter"', folder))
    metric = host.file(f"{folder}/nas_assistant_certificate.prom").content_string
    assert metric.count('{certificate="member"}') == metric.count('{certificate="ca"}') == 1
    host.check_output(f"rm -r {folder}")
    done = playbook("proxy", "--tags", "proxy_certificate", **wish)
    assert done.returncode == 0, done.stdout
    after = host.check_output(serials).splitlines()
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    shown = ssl.get_server_certificate((address, 443))
    assert shown.split() == host.file(f"{TLS}/server.crt").content_string.split()
    context = ssl.create_default_context(cafile=str(credentials / "ca.crt"))
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(
        f"https://{address}/v1/chat/completions",
        json=HELLO, headers=headers, verify=context, trust_env=False, timeout=60,
    )  # fmt: skip
    assert (answer.status_code, answer.headers["x-nas"]) == (200, nas_name)
    assert by_hand(host, "/v1/models", *MINE, key).startswith("HTTP/1.1 200")
    again = playbook("proxy", "--tags", "proxy_certificate", **wish | {"proxy_certificate": CA})
    assert "changed=0" in again.stdout, again.stdout


def test_a_drained_member_takes_nothing_new(host: Host, key: str) -> None:
    host.check_output(f"touch {DRAINED}")
    try:
        # After which a member asks another one.
        assert by_hand(host, "/v1/models", *MINE, key).startswith("HTTP/1.1 502")
    finally:
        host.check_output(f"rm {DRAINED}")
    assert by_hand(host, "/v1/models", *MINE, key).startswith("HTTP/1.1 200")


def test_one_that_is_down_asks_nobody_at_home(
    playbook_in: Callable[..., subprocess.CompletedProcess[str]],
    playbook: Playbook,
    address: str,
    key: str,
    credentials: Path,
    nas_name: str,
    tmp_path: Path,
) -> None:
    """And says so where no other answers, with a site that Nginx takes."""
    lab = yaml.safe_load((INVENTORY / "lab.yml").read_text(encoding="utf-8"))["nas"]
    mine = lab["hosts"][nas_name] | {"proxy_member": {"down": True}}
    # Nobody has this address.
    lab["hosts"] = {nas_name: mine, "other": {"ansible_host": "192.0.2.9"}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"nas": lab}), encoding="utf-8")
    (tmp_path / "group_vars").symlink_to(ROOT / "inventories/lab/group_vars")
    wish = json.dumps({"proxy_pool": [nas_name, "other"], "proxy_certificate": CA})
    try:
        done = playbook_in(tmp_path / "hosts.yml", {}, "proxy", "--extra-vars", wish)
        assert done.returncode == 0, done.stdout
        answer = httpx.post(
            f"https://{address}/v1/chat/completions",
            json=HELLO,
            headers={"Authorization": f"Bearer {key}"},
            verify=ssl.create_default_context(cafile=str(credentials / "ca.crt")),
            trust_env=False,
            timeout=60,
        )
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.json()["error"]["code"] == "service_unavailable"
    finally:
        back = playbook("proxy", proxy_pool=[nas_name], proxy_certificate=CA)
    assert back.returncode == 0, back.stdout


def test_what_is_no_pool_is_refused(playbook: Playbook, nas_name: str) -> None:
    for wish, said in (
        ({"proxy_pool": ["nowhere"]}, "the inventory has no host 'nowhere'"),
        ({"proxy_pool": [nas_name], "proxy_pool_port": 443}, "proxy_pool_port=443: give a port"),
        ({"proxy_pool": [nas_name], "proxy_member": {"weight": 0}}, "weight is a whole number"),
    ):
        done = playbook("proxy", **wish)
        assert done.returncode != 0
        assert said in " ".join(done.stdout.split())
        assert "changed=0" in done.stdout
