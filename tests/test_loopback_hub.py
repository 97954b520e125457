"""The Hub that the tests bring speaks what the real clients speak; every client here is the real one, in a process."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from hf_peft_recipes.embedded import MODEL_DIR

# A folder with other versions of huggingface_hub and transformers, which go through the same tests.
OLD_STACK = os.environ.get("HF_PEFT_RECIPES_OLD_STACK")
CARD = b"---\nbase_model: me/base\nlibrary_name: peft\ntags: [mine, tiny]\ndatasets: me/data\n---\n# An adapter\n"
PRELUDE = """
import json, os
from pathlib import Path

said = {}

def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__
"""


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub", lfs_bytes=50_000, part_bytes=40_000) as made:
        yield made


@pytest.fixture(params=["installed", *(["old"] if OLD_STACK else [])])
def client(request, tmp_path):
    """Return a function that runs a script with a Hub's environment and returns what it put into `said`."""
    path = [OLD_STACK] if request.param == "old" else []

    def run(hub, script, token=None, cache=None, **variables):
        environment = hub.environment(token, cache) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | variables
        environment["PYTHONPATH"] = os.pathsep.join([*path, environment.get("PYTHONPATH", "")])
        code = f"{PRELUDE}\n{textwrap.dedent(script)}\nprint(json.dumps(said))"
        finished = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout.splitlines()[-1])

    return run


def test_a_folder_goes_up_and_comes_back(hub, client, tmp_path):
    files = {
        "README.md": CARD, "adapter_model.safetensors": os.urandom(1000), "in/parts.safetensors": os.urandom(90_001),
        "in/side/notes.txt": b"a line\n" * 10, "large.txt": b"x" * 50_001, "empty.bin": b"",
    }  # fmt: skip
    for path, content in files.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    token = hub.add_user("me")
    said = client(hub, """
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        api = HfApi()
        said["url"] = str(api.create_repo("me/adapter"))
        said["again"] = str(api.create_repo("me/adapter", exist_ok=True))
        said["twice"] = refused(api.create_repo, "me/adapter")
        pushed = [api.upload_folder(repo_id="me/adapter", folder_path="folder").oid for _ in range(2)]
        said["pushed"] = pushed
        folder = Path(snapshot_download("me/adapter"))
        said["folder"] = str(folder)
        said["one"] = Path(hf_hub_download("me/adapter", "in/side/notes.txt", revision=pushed[0])).read_text()
        info = api.model_info("me/adapter", files_metadata=True)
        said["blobs"] = {file.rfilename: file.blob_id for file in info.siblings}
        said["large"] = {file.rfilename: [file.lfs.sha256, file.lfs.size] for file in info.siblings if file.lfs}
        said["tags"], said["card"], said["sha"] = info.tags, info.card_data.to_dict(), info.sha
    """, token)  # fmt: skip
    held = hub.files("me/adapter")
    assert b"*.safetensors filter=lfs" in held.pop(".gitattributes")
    assert held == files
    assert said["url"] == said["again"] == f"{hub.url}/me/adapter"
    assert said["twice"] == "HfHubHTTPError"
    folder = tmp_path / said["folder"]
    assert {path: (folder / path).read_bytes() for path in files} == files
    assert said["one"] == files["in/side/notes.txt"].decode()
    # What is there already is not pushed again.
    first, second = said["pushed"]
    assert first == second == said["sha"] == hub.refs("me/adapter")["refs/heads/main"]
    assert [commit.title for commit in hub.commits("me/adapter")] == [
        "Upload folder using huggingface_hub", "initial commit"]  # fmt: skip
    # Ids are git's, and sha256 where a file is large.
    large = {"adapter_model.safetensors", "in/parts.safetensors", "large.txt"}
    assert said["large"] == {path: [hashlib.sha256(files[path]).hexdigest(), len(files[path])] for path in large}
    git = subprocess.run(["git", "hash-object", "--stdin"], input=CARD, capture_output=True, check=True)
    assert said["blobs"]["README.md"] == git.stdout.decode().strip()
    assert {"mine", "peft", "base_model:me/base", "base_model:adapter:me/base", "dataset:me/data"} <= set(said["tags"])
    assert said["card"]["base_model"] == "me/base"
    storage = [request for request in hub.requests if request.host == "localhost"]
    # 1000 bytes go up at once, 90,001 in three parts, 50,001 in two; each of the three comes down once.
    assert [request.method for request in storage].count("PUT") == 6
    assert [request.method for request in storage].count("GET") == 3
    assert not any(token in str(request) for request in storage), "the token left the Hub"
    assert any(token in request.headers.get("authorization", "") for request in hub.requests)


def test_lists_refs_and_pull_requests(tmp_path, client):
    with LoopbackHub(tmp_path / "hub", page_size=2) as hub:
        token, other = hub.add_user("me"), hub.add_user("other")
        first = hub.add_repo("me/adapter", {"README.md": CARD, "config.json": b"{}", "a/b.txt": b"b", "a/c.txt": b"c"})
        second = hub.commit("me/adapter", {"config.json": b"{1}", "a/c.txt": None})
        for number in range(5):
            hub.add_repo(f"other/model-{number}", {"README.md": b"---\ntags: [some]\n---\n"}, private=number == 4)
        hub.add_repo("me/data", {"README.md": b"---\ntags: [mine]\n---\n", "train.jsonl": b"{}\n"}, kind="dataset")
        said = client(hub, f"""
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
            api = HfApi()
            def names(**options):
                return [model.id for model in api.list_models(**options)]
            said["based"], said["searched"] = names(filter=["base_model:me/base", "mine"]), names(search="ADAPT")
            said["authored"], said["limited"] = names(author="other"), names(filter="some", limit=3)
            said["data"] = [one.id for one in api.list_datasets(filter="mine")]
            said["files"] = api.list_repo_files("me/adapter", revision={first!r})
            tree = api.list_repo_tree("me/adapter", expand=True)
            said["tree"] = [(one.path, one.last_commit.oid) for one in tree]
            said["below"] = [one.path for one in api.list_repo_tree("me/adapter", "a")]
            said["paths"] = [one.path for one in api.get_paths_info("me/adapter", ["a", "a/b.txt", "none"])]
            said["commits"] = [one.commit_id for one in api.list_repo_commits("me/adapter")]
            api.create_branch("me/adapter", branch="new/side", revision={first!r})
            api.create_tag("me/adapter", tag="v1")
            said["tag"] = api.model_info("me/adapter", revision="v1").sha
            said["branch"] = api.list_repo_files("me/adapter", revision="new/side")
            def commit(*operations, **options):
                return api.create_commit("me/adapter", operations, commit_message="change", **options)
            said["stale"] = refused(commit, CommitOperationAdd("n", b"n"), parent_commit={first!r})
            said["absent"] = refused(commit, CommitOperationDelete("none"))
            said["tagged"] = refused(commit, CommitOperationAdd("n", b"n"), revision="v1")
            said["on"] = commit(CommitOperationDelete("a/"), parent_commit={second!r}).oid
            proposed = commit(CommitOperationAdd("proposed.txt", b"p"), create_pr=True)
            said["proposed"] = [proposed.pr_revision, proposed.oid, proposed.pr_num]
            said["seen"] = api.list_repo_files("me/adapter", revision="refs/pr/1")
            theirs = HfApi(token={other!r})
            theirs.create_pull_request("me/adapter", title="Theirs")
            said["discussions"] = [(one.num, one.status) for one in api.get_repo_discussions("me/adapter")]
            said["not theirs"] = refused(theirs.merge_pull_request, "me/adapter", 1)
            api.merge_pull_request("me/adapter", 1)
            said["merged"] = api.get_discussion_details("me/adapter", 1).status
            refs = api.list_repo_refs("me/adapter", include_pull_requests=True)
            said["refs"] = [[one.ref for one in some] for some in (refs.branches, refs.tags, refs.pull_requests)]
        """, token)  # fmt: skip
        assert said["based"] == said["searched"] == ["me/adapter"]
        assert said["data"] == ["me/data"]
        assert sorted(said["authored"]) == [f"other/model-{number}" for number in range(4)]
        assert len(said["limited"]) == 3
        assert said["files"] == ["README.md", "a/b.txt", "a/c.txt", "config.json"]
        assert said["tree"] == [["README.md", first], ["a", second], ["config.json", second]]
        assert said["below"] == ["a/b.txt"] and sorted(said["paths"]) == ["a", "a/b.txt"]
        assert said["commits"] == [second, first] and said["tag"] == second
        assert said["branch"] == said["files"]
        assert said["stale"] == "HfHubHTTPError" and said["absent"] == "RemoteEntryNotFoundError"
        assert said["tagged"] == "BadRequestError"
        assert said["proposed"][0] == "refs/pr/1" and said["proposed"][2] == 1
        assert "proposed.txt" in said["seen"]
        assert said["discussions"] == [[2, "draft"], [1, "open"]]
        assert (said["not theirs"], said["merged"]) == ("HfHubHTTPError", "merged")
        assert said["refs"] == [
            ["refs/heads/main", "refs/heads/new/side"],
            ["refs/tags/v1"],
            ["refs/pr/1", "refs/pr/2"],
        ]
        assert set(hub.files("me/adapter")) == {"README.md", "config.json", "proposed.txt"}
        assert hub.commits("me/adapter")[1].sha == said["on"]
        assert [(one.num, one.author, one.status) for one in hub.pull_requests("me/adapter")] == [
            (1, "me", "merged"), (2, "other", "draft")]  # fmt: skip
        assert (
            sum(request.path.startswith("/api/models?") and "cursor" in request.path for request in hub.requests) >= 2
        )


def test_who_may_do_what(hub, client):
    tokens = {
        "writer": hub.add_user("me"), "reader": hub.add_user("me", "read"), "other": hub.add_user("other"),
        "fine": hub.add_user("me", "fineGrained"), "narrow": hub.add_user("me", "fineGrained", ["repo.content.read"]),
        "member": hub.add_user("member", organizations=["house"]), "wrong": "hf_" + "x" * 34,
    }  # fmt: skip
    hub.add_repo("me/open", {"config.json": b"{}"})
    hub.add_repo("me/private", {"config.json": b"{}"}, private=True)
    hub.add_repo("me/gated", {"config.json": b"{}", "README.md": CARD}, gated=True, readers=["other"])
    said = client(hub, f"""
        from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
        for name, token in {tokens!r}.items():
            api = HfApi(token=token)
            def commit(to):
                api.create_commit(to, [CommitOperationAdd(f"{{name}}.txt", b"n")], commit_message="m")
            said[name] = {{
                "role": refused(api.whoami) or api.whoami()["auth"]["accessToken"]["role"],
                "private": refused(api.model_info, "me/private"),
                "missing": refused(api.model_info, "me/missing"),
                "gated": refused(api.hf_hub_download, "me/gated", "config.json", cache_dir=name),
                "create": refused(api.create_repo, "me/" + name), "commit": refused(commit, "me/open"),
                "house": refused(api.create_repo, "house/" + name),
            }}
        api = nobody = HfApi(token=False)
        said["nobody"] = [
            refused(nobody.model_info, "me/open"), refused(nobody.model_info, "me/private"),
            refused(nobody.model_info, "me/missing"), refused(nobody.create_repo, "me/new"),
            refused(hf_hub_download, "me/gated", "config.json", token=False), refused(commit, "me/missing"),
            refused(nobody.model_info, "me/open", revision="v9"), refused(hf_hub_download, "me/open", "none.json"),
            refused(nobody.model_info, "me/gated"),
        ]
        token = {tokens["writer"]!r}
        def write(card):
            api = HfApi(token=token)
            api.create_commit("me/open", [CommitOperationAdd("README.md", card.encode())], commit_message="m")
        said["cards"] = [refused(write, f"---\\nbase_model: {{base}}\\n---\\n") for base in
                         ("/home/me/model", "out/run/checkpoint-3", "./base", "me/base", "gpt2", "[me/a, 'runs/x/y']")]
        try:
            write("---\\nbase_model: /home/me/model\\n---\\n")
        except ValueError as error:
            said["words"] = str(error)
    """)  # fmt: skip
    seen = {key: [said[name][key] for name in tokens] for key in said["writer"]}
    forbidden, hidden, unknown = "HfHubHTTPError", "RepositoryNotFoundError", "HfHubHTTPError"
    assert seen == {
        # writer, reader, other, fine, narrow, member, wrong
        "role": ["write", "read", "write", "fineGrained", "fineGrained", "write", unknown],
        "private": [None, None, hidden, None, None, hidden, unknown],
        "missing": [hidden, hidden, hidden, hidden, hidden, hidden, unknown],
        "gated": [None, None, None, None, None, "GatedRepoError", unknown],
        "create": [None, forbidden, forbidden, None, forbidden, forbidden, unknown],
        "commit": [None, forbidden, forbidden, None, forbidden, forbidden, unknown],
        "house": [forbidden, forbidden, forbidden, forbidden, forbidden, None, unknown],
    }
    assert said["nobody"] == [
        None, hidden, hidden, forbidden, "GatedRepoError", hidden, "RevisionNotFoundError", "RemoteEntryNotFoundError",
        None,
    ]  # fmt: skip
    assert said["cards"] == ["ValueError", "ValueError", "ValueError", None, None, "ValueError"]
    assert '"base_model" with value "/home/me/model" is not valid' in said["words"]
    assert set(hub.files("me/open")) == {"config.json", "writer.txt", "fine.txt", "README.md"}
    assert hub.exists("house/member") and not hub.exists("me/reader")


def test_a_large_file_that_never_arrived_is_refused(hub, client):
    hub.add_repo("me/open", {"config.json": b"{}"})
    said = client(hub, """
        from huggingface_hub import get_session, get_token
        lines = [{"key": "header", "value": {"summary": "m"}}, {"key": "lfsFile", "value": {
            "path": "a.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 3}}]
        answer = get_session().post(
            os.environ["HF_ENDPOINT"] + "/api/models/me/open/commit/main", content="\\n".join(map(json.dumps, lines)),
            headers={"Authorization": "Bearer " + get_token()})
        said["status"], said["error"] = answer.status_code, answer.json()["error"]
    """, hub.add_user("me"))  # fmt: skip
    assert said == {"status": 400, "error": f"LFS pointer pointed to a file that does not exist: {'0' * 64}"}
    assert set(hub.files("me/open")) == {"config.json"}


KINDS = ("500", "429", "403", "reset", "lost", "forever", "later")


def test_faults_of_a_push(hub, client):
    token = hub.add_user("me")
    for kind in KINDS:
        hub.add_repo(f"me/{kind}", {"config.json": b"{}"})
    hub.fail("POST", "/me/500/preupload", "500")
    hub.fail("POST", "/me/429/preupload", "429", retry_after=0)
    hub.fail("POST", "/me/403/commit", "403")
    reset = hub.fail("PUT", "/incoming/models/me/reset/", "reset")
    hub.fail("POST", "/me/lost/commit", "lost_answer")
    forever = hub.fail("POST", "/me/forever/commit", "500", times=None)
    later = hub.fail("POST", "/me/later/commit", "500", after=1)
    said = client(hub, f"""
        from concurrent.futures import ThreadPoolExecutor
        from huggingface_hub import CommitOperationAdd, HfApi
        api = HfApi()
        def push(kind, content=b"w" * 1000):
            files = [CommitOperationAdd("model.safetensors", content), CommitOperationAdd("note.txt", content[:9])]
            return refused(api.create_commit, "me/" + kind, files, commit_message="m")
        with ThreadPoolExecutor() as pool:  # together, since the clients wait between tries
            said.update(zip({KINDS!r}, pool.map(push, {KINDS!r})))
        said["forever again"], said["later again"] = push("forever"), push("later", b"v" * 1000)
        said["later at last"] = push("later", b"v" * 1000)
    """, token)  # fmt: skip
    pushed = {"config.json": b"{}", "model.safetensors": b"w" * 1000, "note.txt": b"w" * 9}
    for kind in ("500", "429", "reset"):
        assert said[kind] is None, "the client tries again by itself"
        assert hub.files(f"me/{kind}") == pushed
    uploads = [one for one in hub.requests if one.method == "PUT" and "/me/reset/" in one.path]
    assert [len(one.body) for one in uploads] == [500, 1000] and reset.happened == 1
    # A commit is never tried again, and one that raises may have landed all the same.
    assert said["403"] == said["forever"] == said["forever again"] == "HfHubHTTPError"
    assert set(hub.files("me/403")) == set(hub.files("me/forever")) == {"config.json"}
    assert forever.happened == 2
    assert said["lost"] == "RemoteProtocolError" and hub.files("me/lost") == pushed
    assert (said["later"], said["later again"], said["later at last"]) == (None, "HfHubHTTPError", None)
    assert later.happened == 1 and len(hub.commits("me/later")) == 3


def test_faults_of_a_download(hub, client):
    weights, text = os.urandom(60_000), b"one line\n" * 400
    for kind in ("cut", "flip", "damaged", "slow"):
        hub.add_repo(f"me/{kind}", {"model.safetensors": weights, "note.txt": text})
    hub.fail("GET", "/objects/models/me/cut/", "reset")
    hub.fail("GET", "/me/flip/resolve/.*/note.txt", "flip")
    hub.fail("GET|HEAD", "/api/models/me/slow", "slow", seconds=5)
    hub.flip_byte("me/damaged", "model.safetensors")
    said = client(hub, """
        import time
        from huggingface_hub import HfApi, constants, hf_hub_download
        constants.DOWNLOAD_CHUNK_SIZE = 10_000  # what is kept of a download at a time: 10 MiB, else
        for kind, file in (("cut", "model.safetensors"), ("flip", "note.txt"), ("damaged", "model.safetensors")):
            said[kind] = Path(hf_hub_download("me/" + kind, file)).read_bytes().hex()
        started = time.time()
        said["slow"] = refused(HfApi().model_info, "me/slow", timeout=0.3)
        said["seconds"] = time.time() - started
    """)  # fmt: skip
    assert bytes.fromhex(said["cut"]) == weights
    asked = [one.headers.get("range") for one in hub.requests if "/objects/models/me/cut/" in one.path]
    assert asked == [None, "bytes=30000-"], "the rest is asked for, not all again"
    # The clients look at a file's size alone.
    assert differing(bytes.fromhex(said["flip"]), text) == differing(bytes.fromhex(said["damaged"]), weights) == 1
    assert hub.files("me/damaged")["model.safetensors"] != weights
    assert said["slow"] == "ReadTimeout" and said["seconds"] < 3


def differing(one, other):
    """Return how many bytes differ."""
    assert len(one) == len(other)
    return sum(left != right for left, right in zip(one, other, strict=True))


def test_models_and_adapters(hub, client, tmp_path):
    token = hub.add_user("me")
    first = hub.add_repo("me/base", MODEL_DIR)
    config = json.loads((MODEL_DIR / "config.json").read_text())
    second = hub.commit("me/base", {"config.json": json.dumps(config | {"rms_norm_eps": 0.5}).encode()})
    said = client(hub, f"""
        import torch
        from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained("me/base", revision={first!r})
        said["text"] = tokenizer.decode(tokenizer("A fine film.").input_ids, skip_special_tokens=True)
        ids = tokenizer("A fine film.", return_tensors="pt").input_ids
        revisions = [{first!r}, {second!r}, "main"]
        models = [AutoModelForCausalLM.from_pretrained("me/base", revision=revision) for revision in revisions]
        said["eps"] = [model.config.rms_norm_eps for model in models]
        said["same"] = torch.equal(models[1](ids).logits, models[2](ids).logits)
        plain = models[1](ids).logits
        adapted = get_peft_model(models[1], LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
        adapted.push_to_hub("me/adapter")
        loaded = AutoPeftModelForCausalLM.from_pretrained("me/adapter").eval()
        said["base"] = loaded.peft_config["default"].base_model_name_or_path
        said["changed"] = (adapted(ids).logits - plain).abs().max().item()
        said["lost"] = (loaded(ids).logits - adapted(ids).logits).abs().max().item()
    """, token)  # fmt: skip
    assert said["text"] == "A fine film."
    assert said["eps"] == [config["rms_norm_eps"], 0.5, 0.5] and said["same"]
    assert said["base"] == "me/base"
    assert said["changed"] > 0.01 and said["lost"] < 1e-5
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(hub.files("me/adapter"))


def test_data_sets(hub, client):
    rows = [{"question": f"{number}?", "answer": str(number)} for number in range(6)]
    lines = [(json.dumps(row) + "\n").encode() for row in rows]
    first = hub.add_repo("me/data", {"train.jsonl": b"".join(lines[:4]), "test.jsonl": lines[5]}, kind="dataset")
    second = hub.commit("me/data", {"train.jsonl": b"".join(lines[2:])})
    hub.add_repo("me/hidden", {"train.jsonl": lines[0]}, kind="dataset", private=True)
    hub.add_repo("me/gated", {"train.jsonl": lines[0]}, kind="dataset", gated=True)
    said = client(hub, f"""
        from datasets import load_dataset
        def answers(**options):
            return {{split: list(rows["answer"]) for split, rows in load_dataset("me/data", **options).items()}}
        said["first"], said["second"], said["main"] = (
            answers(revision={first!r}), answers(revision={second!r}), answers())
        said["none"] = [refused(load_dataset, name) for name in ("me/hidden", "me/missing", "me/gated")]
        said["streamed"] = [row["answer"] for row in load_dataset("me/data", split="train", streaming=True)]
    """)  # fmt: skip
    assert said["first"] == {"train": ["0", "1", "2", "3"], "test": ["5"]}
    assert said["second"] == said["main"] == {"train": ["2", "3", "4", "5"], "test": ["5"]}
    assert said["none"] == ["DatasetNotFoundError"] * 3
    assert said["streamed"] == said["main"]["train"]


def test_ranges_and_signatures(hub):
    hub.add_repo("me/open", {"note.txt": b"0123456789", "model.safetensors": b"w" * 100})

    def ask(path, **headers):
        try:
            with urllib.request.urlopen(urllib.request.Request(path, headers=headers)) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    note = f"{hub.url}/me/open/resolve/main/note.txt"
    assert [ask(note, Range=f"bytes={wanted}")[:2] for wanted in ("2-4", "7-", "-2", "8-99")] == [
        (206, b"234"), (206, b"789"), (206, b"89"), (206, b"89")]  # fmt: skip
    assert ask(note, Range="bytes=2-4")[2]["Content-Range"] == "bytes 2-4/10"
    assert ask(note, Range="bytes=10-")[0] == 416
    status, content, _ = ask(f"{hub.url}/me/open/resolve/main/model.safetensors")
    assert (status, content) == (200, b"w" * 100), "through the redirect"
    stored = f"http://localhost{next(one.path for one in hub.requests if one.host == 'localhost')}"
    stored = stored.replace("localhost", f"localhost:{hub.url.rsplit(':')[-1]}")
    assert ask(stored)[0] == 200
    assert ask(f"{stored}0")[0] == 403
    assert ask(stored, Authorization="Bearer hf_x")[0] == 400, "a token has no business there"


def test_a_body_in_chunks(hub):
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
    card = json.dumps({"content": "---\nbase_model: ./out\n---\n"}).encode()
    connection.request("POST", "/api/validate-yaml", iter([card[:9], card[9:]]), encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 400 and "./out" in answer.read().decode()
    assert hub.requests[0].body == card
    hub.fail("POST|PUT", "/api/validate-yaml$", "reset")
    # The reset may come while the body is still on its way.
    with pytest.raises(ConnectionError):
        connection.request("POST", "/api/validate-yaml", iter([card[:9], card[9:]]), encode_chunked=True)
        connection.getresponse()
    assert hub.requests[1].body == card[:4]


def test_the_environment_and_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    monkeypatch.setenv("HF_HUB_ENABLE_SOMETHING", "1")
    with LoopbackHub(tmp_path / "hub") as hub:
        one, two = hub.environment(), hub.environment("hf_mine", tmp_path / "cache")
        assert "hf_of_the_user" not in str(one) and "HF_HUB_ENABLE_SOMETHING" not in one
        assert (one["HF_TOKEN"], two["HF_TOKEN"]) == ("", "hf_mine")
        assert not list(Path(one["HF_HOME"]).iterdir()) and one["HF_HOME"] != hub.environment()["HF_HOME"]
        assert two["HF_HOME"] == str(tmp_path / "cache")
        assert one["PATH"] == os.environ["PATH"]
        with pytest.raises(ValueError, match="one of 500, 429"):
            hub.fail("GET", "/", "502")
        hub.fail("GET", "/api/models", "slow", seconds=60)
        waiting = subprocess.Popen(
            [sys.executable, "-c", f"import urllib.request as u; u.urlopen('{hub.url}/api/models')"]
        )
        deadline = time.monotonic() + 20
        while not hub.requests and time.monotonic() < deadline:
            time.sleep(0.05)
        started = time.monotonic()
    # Leaving does not wait for slow answers, and nobody answers afterwards.
    waiting.wait(10)
    assert time.monotonic() - started < 10
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{hub.url}/api/models", timeout=5)
