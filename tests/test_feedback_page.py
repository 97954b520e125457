"""The web page of feedback: who may ask its server what, what a death loses, and the page in a real browser."""

import base64
import hashlib
import re
import resource
import signal
import stat
import threading

import pytest
import webdriver
from people_samples import HOSTILE, Page, answers, begin_round, said

from hf_peft_recipes.feedback.people.page import page
from hf_peft_recipes.feedback.people.tokens import kept_token


@pytest.fixture
def served(tmp_path):
    """Return a page that serves four answers."""
    with Page(answers(tmp_path, completion=HOSTILE)) as made:
        yield made


def test_nobody_comes_in_without_the_token(served):
    right, cookie = f"/?token={served.token}", f"feedback_{served.port}={served.token}"
    assert served.ask(right)[0] == 200
    assert cookie in served.ask(right)[1]["Set-Cookie"]
    assert "HttpOnly; SameSite=Lax" in served.ask(right)[1]["Set-Cookie"]
    assert served.ask("/", Cookie=cookie)[0] == 200
    for path, headers in (
        ("/", {}), ("/?token=", {}), (f"/?token={served.token[:-1]}", {}), ("/?token=%C3%A4%00", {}), ("/other", {}),
        ("/", {"Cookie": cookie[:-1]}), ("/", {"Cookie": ";=;\x01"}), ("/", {"Cookie": f"feedback_1={served.token}"}),
    ):  # fmt: skip
        status, _, told = served.ask(path, **headers)
        assert (status, list(told)) == (403, ["error"]), path
        assert served.token not in str(told)
    asked = {"person": "ada"}
    assert served.ask("/next", asked)[0] == 200
    assert served.ask("/next", asked, X_Feedback_Token=None, Cookie=cookie)[0] == 403, "as a foreign page would send it"
    assert served.ask("/next", asked, X_Feedback_Token="")[0] == 403
    assert served.ask("/next", asked, X_Feedback_Token="ä" * 32)[0] == 403


def test_a_name_that_was_bent_to_this_address_is_refused(served):
    right = f"/?token={served.token}"
    for host, status in (
        ("localhost", 200), (f"localhost:{served.port}", 200), (f"127.0.0.1:{served.port}", 200), ("[::1]:80", 200), ("LOCALHOST", 200),
        ("evil.example", 403), (f"evil.example:{served.port}", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("[::1", 403), ("a@b", 403),
    ):  # fmt: skip
        assert served.ask(right, Host=host)[0] == status, host
        assert served.ask("/next", {"person": "ada"}, Host=host)[0] == status, host
    own = f"127.0.0.1:{served.port}"
    for origin, status in (
        (f"http://{own}", 200),
        ("https://evil.example", 403),
        ("null", 403),
        (f"http://{own}.evil", 403),
    ):
        assert served.ask("/next", {"person": "ada"}, Origin=origin)[0] == status, origin


def test_nonsense_is_refused_in_a_line_and_the_next_request_is_answered(served):
    sample = served.do("/next", person="ada")["sample"]["id"]
    right = {"person": "ada", "sample": sample, "verdict": "accept"}
    for path, values, status, why in (
        ("/nothing", right, 404, "no such path"), ("/judge", b"{", 400, "no JSON"), ("/judge", b"\xff", 400, "no JSON"),
        ("/judge", "[" * 5000, 400, "no JSON"), ("/judge", "[]", 400, "a mapping is wanted"), ("/judge", "", 400, "no JSON"),
        ("/judge", {**right, "person": "a:b"}, 400, "name 'a:b'"), ("/judge", {**right, "person": 3}, 400, "person is no text"),
        ("/judge", {**right, "verdict": "like"}, 400, "no verdict 'like'; one of accept, reject, edit, critique"),
        ("/judge", {**right, "sample": "nowhere"}, 400, "not there any more"), ("/judge", {"person": "ada"}, 400, "not there"),
        ("/judge", {**right, "verdict": "edit", "correction": f" {HOSTILE}"}, 400, "unchanged: that is no correction"),
        ("/judge", {**right, "verdict": "edit", "correction": " "}, 400, "empty: that is no correction"),
        ("/judge", {**right, "verdict": "critique"}, 400, "the critique is empty"),
        ("/next", {"person": "ada", "skipped": "x"}, 400, "skipped is no list"), ("/status", {"person": "ada", "sample": []}, 400, "no text"),
        ("/judge", b" " * (4 * 2**20 + 1), 413, "more than a judgement takes"),
    ):  # fmt: skip
        try:
            told = served.ask(path, values)
        except ConnectionError:
            # It hangs up on what is too large before all of it has come.
            assert status == 413
            continue
        assert told[0] == status, told
        assert why in told[2]["error"]
    assert served.do("/judge", **right)["id"].endswith(":human:ada")
    served.kill()
    assert served.process.returncode == -signal.SIGKILL


def test_the_page_asks_nothing_of_anybody_else():
    document, policy = page("to<ken", "target", '"Ada"')
    assert '<meta name="token" content="to&lt;ken">' in document
    assert '<meta name="person" content="&quot;Ada&quot;">' in document
    assert not re.findall(
        r"https?:|//[a-z]|@import|url\(|innerHTML|insertAdjacent|document\.write|\beval\b", document.replace("// ", "")
    )
    for kind in ("script", "style"):
        text = re.search(rf"<{kind}>(.*?)</{kind}>", document, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"unsafe|\*", policy)
    assert not re.findall(r'\s(on\w+|style|src|action)="', document), "what the policy would not let through"


def test_answers_travel_as_data(served, tmp_path):
    told = served.ask("/next", {"person": "ada"})
    assert told[2]["sample"]["completion"] == HOSTILE
    assert told[2]["sample"]["reference"] is None, "people are not to be led"
    assert (told[1]["Content-Type"], told[1]["X-Content-Type-Options"]) == (
        "application/json; charset=utf-8",
        "nosniff",
    )
    sample = told[2]["sample"]["id"]
    served.do("/judge", person="ada", sample=sample, verdict="edit", correction="half \ud800 \u2028\n", critique="ž")
    assert said(tmp_path / "answers.feedback.jsonl") == [(HOSTILE, "ada", False, "ž", "half \ufffd")]
    with Page(tmp_path / "answers.jsonl", "--show_reference") as other:
        assert other.do("/next", person="bob")["sample"]["reference"] == "2"
        assert other.do("/undo", person="ada")["sample"]["said"] == {
            "label": False,
            "correction": "half \ufffd",
            "critique": "ž",
        }
        assert other.do("/undo", person="bob")["sample"] is None


def test_two_at_once_judge_everything_once(tmp_path):
    with Page(answers(tmp_path, count=40)) as served:

        def sit(person):
            while sample := served.do("/next", person=person)["sample"]:
                served.do("/judge", person=person, sample=sample["id"], verdict="accept")

        sitting = [threading.Thread(target=sit, args=(person,)) for person in ("ada", "bob")]
        for each in sitting:
            each.start()
        for each in sitting:
            each.join()
        records = said(tmp_path / "answers.feedback.jsonl")
        assert len(records) == len({completion for completion, *_ in records}) == 40
        assert {who for _, who, *_ in records} == {"ada", "bob"}

        # The same sample, at the same moment, again and again.
        sample, start = served.do("/undo", person="ada")["sample"]["id"], threading.Barrier(4)

        def insist(person, word):
            start.wait()
            for n in range(5):
                served.do("/judge", person=person, sample=sample, verdict="critique", critique=f"{word} {n}")

        sitting = [threading.Thread(target=insist, args=(person, word)) for person in ("ada", "bob") for word in "xy"]
        for each in sitting:
            each.start()
        for each in sitting:
            each.join()
        told = [(who, text) for _, who, _, text, _ in said(tmp_path / "answers.feedback.jsonl")[40:]]
        assert sorted(told) == sorted((who, f"{word} {n}") for who in ("ada", "bob") for word in "xy" for n in range(5))
        others = served.do("/status", person="eve", sample=sample)["others"]
        assert sorted(others) == ["ada", "bob"]


@pytest.mark.usefixtures("real_processes")
def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path):
    path, limit = answers(tmp_path), resource.RLIMIT_FSIZE
    with Page(path) as served:
        told, sample = [], served.do("/next", person="ada")["sample"]
        # Not from its start: Python keeps the bytecode of what it imports, cut off at the limit, for good.
        resource.prlimit(served.process.pid, limit, (700, resource.RLIM_INFINITY))
        while sample:
            told.append(
                served.ask(
                    "/judge", {"person": "ada", "sample": sample["id"], "verdict": "critique", "critique": "x" * 50}
                )
            )
            if told[-1][0] != 200:
                break
            sample = served.do("/next", person="ada")["sample"]
        assert [status for status, *_ in told] == [200, 200, 500]
        assert "File too large" in told[-1][2]["error"]
        resource.prlimit(served.process.pid, limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        served.do("/judge", person="ada", sample=sample["id"], verdict="reject")
    assert [completion for completion, *_ in said(tmp_path / "answers.feedback.jsonl")] == ["0", "2", "4"]


def test_the_token_stays_and_is_its_owners_alone(tmp_path, monkeypatch):
    path = answers(tmp_path)
    with Page(path) as first:
        sample = first.do("/next", person="ada")["sample"]
        first.do("/judge", person="ada", sample=sample["id"], verdict="accept")
        first.kill()
        with Page(path, port=first.port) as second:
            assert second.address == first.address
            assert second.do("/next", person="ada")["progress"]["judged"] == 1
            assert "Ctrl-C" in second.process.stdout.readline()
            second.process.send_signal(signal.SIGINT)
            printed, complaints = second.process.communicate()
            assert (second.process.returncode, printed, complaints) == (0, "1 of 4 judged\n", "")
    assert not [each for each in tmp_path.rglob("*") if each.is_file() and first.token in each.read_text()]
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    token, kept = kept_token("t"), tmp_path / "home" / "hf_peft_recipes" / "feedback" / "t"
    assert (kept_token("t"), stat.S_IMODE(kept.stat().st_mode)) == (token, 0o600)
    kept.write_text("")
    assert len(kept_token("t")) == 32, "an empty token would be anybody's"


def test_where_it_cannot_listen(served, tmp_path, command):
    words = ["feedback", "serve", tmp_path / "answers.jsonl"]
    for more, why in (
        (["--port", served.port], "the port is in use; --port 0 takes a free one"),
        (["--host", "no.such.name.invalid"], "no address of this machine has that name"),
        (["--host", "192.0.2.1"], "192.0.2.1, port 7321: "),
        (["--port", "99999"], "port 99999: from 0 to 65535 is wanted"),
        (["--name", "a:b"], "name 'a:b'"),
    ):
        finished = command(*words, *more)
        assert (finished.returncode, finished.stdout) == (2, ""), finished
        assert why in finished.stderr
        assert finished.stderr.count("\n") == 1
    with Page(tmp_path / "answers.jsonl", "--host", "0.0.0.0") as open_to_all:
        assert open_to_all.ask("/", Host="evil.example")[0] == 403
        open_to_all.process.kill()
        assert "without encryption" in open_to_all.process.communicate()[1]


@pytest.fixture(scope="module")
def driver():
    """Return a chromedriver."""
    if not webdriver.is_there():
        pytest.skip("no chromedriver (Debian: apt-get install chromium chromium-driver)")
    with webdriver.Driver() as made:
        yield made


def begin(browser, served, name):
    browser.open(served.address)
    browser.wait_for("#welcome", "Who judges?")
    browser.write("#name", name)
    browser.press("enter")


@pytest.mark.browser
def test_a_sitting_in_a_browser(driver, tmp_path):
    journal = tmp_path / "answers.feedback.jsonl"
    with Page(answers(tmp_path, count=6, completion=HOSTILE)) as served:
        browser = driver.browser()
        begin(browser, served, "a:b")
        browser.wait_for("#trouble", "Name 'a:b'")
        browser.write("#name", "ada")
        browser.press("enter")
        browser.wait_for("#completion", "pwned")
        assert browser.run("return document.querySelector('#completion').textContent") == HOSTILE
        assert browser.run(
            "return [document.querySelectorAll('#sample script, #sample img').length, window.pwned ?? null]"
        ) == [0, None]
        assert served.token not in browser.run("return location.href")
        assert browser.text("#progress") == "0 of 6 judged"
        browser.press("a")
        browser.wait_for("#prompt", "1 + 1")
        browser.press("r")
        browser.wait_for("#prompt", "2 + 2")
        browser.press("e")
        assert browser.run("return document.activeElement.id") == "correction"
        browser.press("control+enter")
        browser.wait_for("#trouble", "The answer is unchanged: that is no correction.")
        browser.write("#correction", "four, as a and r are letters here")
        browser.write("#critique", "a word")
        browser.press("control+enter")
        browser.wait_for("#prompt", "3 + 3")
        browser.press("c", "n", "o", "control+enter")
        browser.wait_for("#prompt", "4 + 4")
        browser.press("s")
        browser.wait_for("#prompt", "5 + 5")
        browser.press("u")
        browser.wait_for("#said", "You said: rejected\nno")
        browser.press("u")
        browser.wait_for("#said", "You said: corrected\nfour, as a and r")
        browser.press("a")
        browser.wait_for("#prompt", "5 + 5")
        browser.press("a")
        browser.wait_for("#rest", "You skipped 1.")
        assert browser.text("#progress") == "5 of 6 judged"
        browser.run("document.querySelector('#again').click()")
        browser.wait_for("#prompt", "4 + 4")
        browser.press("a")
        browser.wait_for("#rest", "Everything is judged.")
        assert [each for each in browser.errors() if "400 (Bad Request)" not in each] == []
    assert said(journal) == [
        (HOSTILE, "ada", True, None, None), ("2", "ada", False, None, None),
        ("4", "ada", False, "a word", "four, as a and r are letters here"), ("6", "ada", False, "no", None),
        ("4", "ada", True, None, None), ("10", "ada", True, None, None), ("8", "ada", True, None, None),
    ]  # fmt: skip


@pytest.mark.browser
def test_neither_a_dead_server_nor_a_dead_page_loses_anything(driver, tmp_path):
    path, journal = answers(tmp_path, count=5), tmp_path / "answers.feedback.jsonl"
    browser = driver.browser()
    with Page(path, "--name", "ada") as served:
        browser.open(served.address)
        browser.wait_for("#welcome", "Who judges?")
        browser.press("enter")
        browser.wait_for("#prompt", "0 + 0")
        browser.press("e")
        browser.write("#correction", "zero")
        browser.press("escape")
        browser.ask("POST", "/refresh", {})
        browser.wait_for("#prompt", "0 + 0")
        browser.press("e")
        assert browser.run("return document.querySelector('#correction').value") == "zero"
        browser.write("#critique", "no figures")
        browser.ask("POST", "/refresh", {})
        browser.wait("return document.querySelector('#critique')?.value === 'no figures'")
    browser.press("control+enter")
    browser.wait_for(
        "#trouble", "The server does not answer. Your judgement cannot be saved yet: it is kept in this browser"
    )
    with Page(path, port=served.port) as served:
        browser.wait_for("#prompt", "1 + 1")
        assert browser.text("#trouble") == ""
        assert said(journal) == [("0", "ada", False, "no figures", "zero")]
    browser.press("r")
    browser.wait_for("#trouble", "cannot be saved yet")
    browser.open("about:blank")
    with Page(path, port=served.port) as served:
        browser.open(served.address)
        browser.wait_for("#prompt", "2 + 2")
        assert said(journal)[1:] == [("2", "ada", False, None, None)]
    assert not browser.run("return Object.keys(localStorage).filter((key) => /unsaved|draft/.test(key)).length")


@pytest.mark.browser
def test_two_people_at_once_and_a_round_that_comes(driver, tmp_path):
    begin_round(tmp_path, 1, count=2)
    with Page(tmp_path) as served:
        ada, bob = driver.browser(), driver.browser("--window-size=375,740")
        for browser, name in ((ada, "ada"), (bob, "bob")):
            begin(browser, served, name)
            browser.wait_for("#completion", "answer")
        assert {ada.text("#completion")[:8], bob.text("#completion")[:8]} == {"answer 0", "answer 1"}
        ada.press("a")
        ada.wait_for("#rest", "1 before others")
        bob.press("r")
        bob.wait_for("#rest", "Everything is judged.")
        word = "x" * 500
        begin_round(tmp_path, 2, count=2, answer=word)
        for browser in (ada, bob):
            browser.wait_for("#completion", word)
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), (
                "nothing runs out of the window"
            )
        assert bob.run("return innerWidth") < 520
    assert [(who, label) for _, who, label, *_ in said(tmp_path / "feedback.jsonl")] == [("ada", True), ("bob", False)]
