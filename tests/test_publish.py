"""Tickets on the hub: against a server that stands in for it, as none of this may depend on a network or an account.

It speaks as much of the hub's protocol as huggingface_hub asks for here: making a repository, a commit, downloads.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
import yaml
from tiny import Tiny, play

from lt_lightning import TicketFile, load_ticket, push_ticket
from lt_lightning.exchange.publish import make_card


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name → list of (commit, files), the last one is main."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories, self.private, self.tokens, self.messages, self.refuse = {}, {}, set(), [], None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo, revision):
        commits = self.repositories.get(repo, [])
        return next((each for each in reversed(commits) if revision in ("main", each[0])), None)


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, hub = unquote(urlsplit(self.path).path), self.server
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuse:
            self.say(hub.refuse, {"error": "not allowed"})
        elif path == "/api/validate-yaml":
            self.say(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            exists = name in hub.repositories
            hub.repositories.setdefault(name, [])
            hub.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            self.say(409 if exists else 200, {"url": f"{hub.address}/{name}"})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            asked = [each["path"] for each in json.loads(body)["files"]]
            self.say(200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = dict(hub.repositories[found[1]][-1][1]) if hub.repositories[found[1]] else {}
            for line in lines:
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                else:
                    hub.messages.append(line["value"]["summary"])
            oid = hashlib.sha1(body).hexdigest()
            hub.repositories[found[1]].append((oid, files))
            url = f"{hub.address}/{found[1]}/commit/{oid}"
            self.say(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
        else:
            self.say(404, {"error": path})

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
        commit = self.server.files(found[1], found[2]) if found else None
        if commit is None or found[3] not in commit[1]:
            code = "EntryNotFound" if commit else "RepoNotFound"
            self.say(404, {"error": code}, {"X-Error-Code": code}, body)
            return
        content = commit[1][found[3]]
        about = {"X-Repo-Commit": commit[0], "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        self.say(200, content, about, body)

    def say(self, code, content, headers=None, body=True):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(raw)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub()
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
    values = {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "".join(template[1:]),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
    }
    for module in (huggingface_hub.constants, huggingface_hub.file_download):  # old releases import the names
        for name, value in values.items():
            monkeypatch.setattr(module, name, value, raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    play(directory, rounds=1, rewind_step=2)
    return directory


def test_what_is_pushed_is_loaded_with_its_metrics(hub, tiny_run):
    address = push_ticket(tiny_run / "round-01", "someone/tickets", token="hf_secret", private=True)
    ours, theirs = load_ticket(tiny_run / "round-01"), load_ticket(address)
    assert theirs.metrics == ours.metrics
    assert "test/acc" in theirs.metrics
    assert (theirs.round, theirs.arm, theirs.config, theirs.versions) == (1, "ticket", ours.config, ours.versions)
    assert all(torch.equal(theirs.masks[name], mask) for name, mask in ours.masks.items())
    assert all(torch.equal(theirs.state[name], value) for name, value in ours.state.items())
    one, other = Tiny(), Tiny()
    ours.apply(one)
    theirs.apply(other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.private == {"someone/tickets": True}
    assert hub.messages == ["Ticket of round 1 (ticket), density 0.803"]
    assert (tiny_run / "round-01" / "ticket.safetensors").read_bytes() != hub.files("someone/tickets", "main")[1][
        "ticket.safetensors"
    ], "the run's own file holds no metrics, and is as it was"


def test_an_address_names_a_commit_and_without_one_the_newest(hub, tiny_run):
    first = push_ticket(tiny_run / "round-00", "someone/tickets", token="t")
    second = push_ticket(tiny_run / "round-01", "someone/tickets", token="t")
    assert re.fullmatch(r"hf://someone/tickets@[0-9a-f]{40}/ticket.safetensors", first)
    assert first != second
    assert [load_ticket(each).round for each in (first, second, "hf://someone/tickets")] == [0, 1, 1]


def test_a_repository_holds_several_each_with_its_card(hub, tiny_run):
    for n in (0, 1):
        push_ticket(tiny_run / f"round-0{n}", "someone/tickets", f"round-0{n}/ticket.safetensors", token="t")
    files = hub.files("someone/tickets", "main")[1]
    assert sorted(files) == [f"round-0{n}/{name}" for n in (0, 1) for name in ("README.md", "ticket.safetensors")]
    assert load_ticket("hf://someone/tickets/round-00/ticket.safetensors").round == 0
    assert load_ticket("hf://someone/tickets@main/round-01/ticket.safetensors").round == 1


def test_the_card_says_density_metrics_and_how_to_load_it(hub, tiny_run):
    push_ticket(tiny_run / "round-01", "someone/tickets", token="t")
    card = hub.files("someone/tickets", "main")[1]["README.md"].decode()
    ticket = load_ticket(tiny_run / "round-01")
    about = yaml.safe_load(card.split("---")[1])
    assert about == {
        "library_name": "lt_lightning",
        "tags": ["lottery-ticket", "pruning", "sparsity", "pytorch"],
    }
    assert "# A lottery ticket that keeps 80.3% of the weights" in card
    assert "Of 132 prunable weights 106 are kept, a density of 0.80303" in card
    assert f"| test/acc | {ticket.metrics['test/acc']:.6g} |" in card
    hidden = int(ticket.masks["hidden.weight"].sum())
    assert f"| `hidden.weight` | 12 x 8 | {hidden} | 96 | {hidden / 96:.4g} |" in card
    names = {"model": Tiny()}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert list(names["masks"]) == ["hidden.weight", "output.weight"]


def test_a_ticket_that_nobody_trained_has_a_card_without_metrics():
    card = make_card(TicketFile({"w": torch.tensor([True, False])}, versions={}), "hf://a/b/ticket.safetensors")
    assert "Nothing is recorded." in card
    assert "an unknown version; configuration `unknown`" in card


@pytest.mark.parametrize(
    ("repo", "path"), [("tickets", "ticket.safetensors"), ("a/b/c", "ticket.safetensors"), ("a/b", "ticket.pt")]
)
def test_names_that_do_not_do_are_refused_before_anything_is_sent(hub, tiny_run, repo, path):
    with pytest.raises(ValueError, match=r"expected a repository such as 'user/repo', and in it a path that ends with"):
        push_ticket(tiny_run / "round-01", repo, path, token="t")
    with pytest.raises(FileNotFoundError):
        push_ticket(tiny_run / "round-09", "a/b", token="t")
    assert hub.repositories == {}


def test_what_the_hub_refuses_or_does_not_have_is_an_os_error(hub, tiny_run):
    with pytest.raises(OSError, match="404"):
        load_ticket("hf://someone/tickets")
    hub.refuse = 403
    with pytest.raises(OSError, match="403"):
        push_ticket(tiny_run / "round-01", "someone/tickets", token="t")


@pytest.mark.parametrize("address", ["hf://", "hf://user", "hf:///repo", "hf://user@v1/repo"])
def test_what_is_no_address_is_told_how_to_write_one(address):
    with pytest.raises(ValueError, match=r"write hf://user/repo, hf://user/repo/folder/ticket.safetensors or"):
        load_ticket(address)


def test_without_huggingface_hub_it_says_what_to_install(tiny_run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    for use in (lambda: load_ticket("hf://a/b"), lambda: push_ticket(tiny_run / "round-01", "a/b")):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "lt-lightning\[hub\]"'):
            use()
