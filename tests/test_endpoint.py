"""Models behind servers: what is tried again, what is not, what it costs, and what nobody is to see."""

import json
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from loopback_judge import Reply, serving

from hf_peft_recipes.endpoint import Budget, BudgetSpentError, Endpoint, EndpointError
from hf_peft_recipes.errors import UserError

TURNS = [{"role": "user", "content": "Two and two?"}]
GOOD = Reply(" four \n")
KEY = "sk-" + "a1b2c3d4" * 4


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def endpoint(server, **options):
    return Endpoint(server.url, "tiny", **{"pause_seconds": 0.01, "seconds": 5.0, **options})


def test_an_answer_and_what_it_cost():
    with serving([GOOD]) as server:
        asked = endpoint(server, budget=Budget(input_price=2.0, output_price=4.0))
        assert asked.complete(TURNS, temperature=0.5, seed=None) == ["four"]
        assert server.asked == [{"model": "tiny", "messages": TURNS, "temperature": 0.5}]
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        spending = asked.spending
    assert (spending.requests, spending.input_tokens, spending.output_tokens) == (1, 10, 5)
    assert spending.cost == pytest.approx(40e-6)


@pytest.mark.parametrize(
    "failure",
    [
        Reply(status=429), Reply(status=500, body="<html>oops</html>"), Reply(status=503), Reply(body='{"choices": ['),
        Reply(body=""), Reply(body="[]"), Reply(body="[" * 99_999), Reply(closes=True), Reply(seconds=0.6),
        Reply(seconds=0.9, blanks=True),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(failure):
    with serving([failure, failure, GOOD]) as server:
        assert endpoint(server, seconds=0.3).complete(TURNS) == ["four"]
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("failure", "told", "kind"),
    [
        (Reply(status=400, body='{"error": {"message": "too long"}}'), "400: too long", EndpointError),
        (Reply(status=422, body='{"detail": "no such parameter"}'), "422: no such parameter", EndpointError),
        (Reply(status=401, body='{"error": {"message": "wrong key sk-..."}}'), "401: wrong key", UserError),
        (Reply(status=404, body='{"error": "no model tiny"}'), "404: no model tiny", UserError),
        (Reply(status=302, headers={"Location": "http://127.0.0.1:9/v2"}), "redirected to 'http://127.0.0.1:9/v2'", UserError),
        (Reply(body='{"choices": []}'), "without choices", EndpointError),
        (Reply(body='{"choices": [{"text": "x"}]}'), "without choices", EndpointError),
    ],
)  # fmt: skip
def test_what_would_not_pass_is_asked_once(failure, told, kind):
    with serving([failure]) as server:
        with pytest.raises(kind, match=told):
            endpoint(server).complete(TURNS)
        assert len(server.asked) == 1


def test_a_server_that_never_answers_is_given_up():
    with serving([Reply(status=500, body="x" * 9999)]) as server:
        with pytest.raises(EndpointError, match=r"500: x+… \(3 attempts\)"):
            endpoint(server, retries=2).complete(TURNS)
        assert len(server.asked) == 3
        url = server.url
    with pytest.raises(EndpointError, match=r"refused \(1 attempts\)"):
        Endpoint(url, "tiny", retries=0).complete(TURNS)


@pytest.mark.parametrize("date", [False, True])
def test_a_server_says_how_long_to_wait(date):
    after = format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True) if date else "0.5"
    with serving([Reply(status=429, headers={"Retry-After": after}), GOOD]) as server:
        endpoint(server).complete(TURNS)
        assert server.times[1] - server.times[0] > 0.4
    late = Reply(status=429, headers={"Retry-After": "3600"})
    told = r"asks to wait 3600 s \(1 attempts\)"
    with serving([late]) as server, pytest.raises(EndpointError, match=told):
        endpoint(server).complete(TURNS)


def test_nothing_is_asked_twice_even_after_a_kill(tmp_path):
    path = tmp_path / "answers.jsonl"
    with serving([GOOD]) as server:
        for _ in range(2):
            asked = endpoint(server, cache=path)
            assert asked.complete(TURNS, seed=1) == asked.complete(TURNS, seed=1) == ["four"]
        assert len(server.asked) == 1
        path.write_bytes(path.read_bytes() + b'{"key": "half')
        asked = endpoint(server, cache=path)
        asked.complete(TURNS, seed=1)
        asked.complete(TURNS, seed=2)
        asked.complete([{"role": "user", "content": "Three?"}], seed=1)
        assert len(server.asked) == 3
        again = endpoint(server, cache=path)
        for seed in (1, 2):
            again.complete(TURNS, seed=seed)
        assert len(server.asked) == 3
    assert KEY not in path.read_text()


def test_an_empty_answer_is_not_kept(tmp_path):
    with serving([Reply(" "), GOOD]) as server:
        asked = endpoint(server, cache=tmp_path / "answers.jsonl")
        assert [asked.complete(TURNS) for _ in range(2)] == [[""], ["four"]]


def test_several_answers_also_of_a_server_that_gives_one_at_a_time():
    with serving([GOOD]) as server:
        assert endpoint(server).complete(TURNS, n=3, seed=5) == ["four"] * 3
        assert [question["n"] for question in server.asked] == [3]
    one = Reply(body=json.dumps({"choices": [{"message": {"content": "four"}}]}))
    with serving([one]) as server:
        assert endpoint(server).complete(TURNS, n=3, seed=5) == ["four"] * 3
        assert [(question.get("n"), question["seed"]) for question in server.asked] == [(3, 5), (2, 6), (None, 7)]


@pytest.mark.parametrize(
    ("budget", "asks"),
    [
        (Budget(max_requests=3), 3), (Budget(max_total_tokens=31), 3),
        (Budget(max_cost=3e-5, input_price=1.0, output_price=1.0), 2),
    ],
)  # fmt: skip
def test_a_budget_ends_the_asking(budget, asks):
    with serving([GOOD]) as server:
        asked = endpoint(server, budget=budget)
        with pytest.raises(BudgetSpentError, match="budget spent: max_"):
            for seed in range(9):
                asked.complete(TURNS, seed=seed)
        assert len(server.asked) == asks
        assert asked.complete(TURNS, seed=0) == ["four"]


def test_tokens_that_a_server_does_not_count_are_counted():
    with serving([Reply(body=json.dumps({"choices": [{"message": {"content": "x" * 400}}]}))]) as server:
        asked = endpoint(server)
        asked.complete(TURNS)
    assert asked.spending.output_tokens > 100 and asked.spending.input_tokens > 10


def test_a_budget_holds_for_threads_too():
    with serving([GOOD]) as server:
        asked = endpoint(server, budget=Budget(max_requests=5))

        def ask(seed):
            with suppress(BudgetSpentError):
                asked.complete(TURNS, seed=seed)

        threads = [threading.Thread(target=ask, args=[seed]) for seed in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked) == 5


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_is_in_no_message(status, monkeypatch):
    monkeypatch.setenv("MY_SERVER", "a-key-of-mine")
    echo = Reply(status=status, body='{"error": {"message": "bad: Bearer a-key-of-mine"}}')
    with serving([echo]) as server, pytest.raises((UserError, EndpointError)) as raised:
        endpoint(server, api_key_env="MY_SERVER", retries=0).complete(TURNS)
    assert "a-key-of-mine" not in str(raised.value) and "REDACTED" in str(raised.value)


def test_a_server_of_ones_own_needs_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving([GOOD]) as server:
        endpoint(server).complete(TURNS)
        endpoint(server, api_key_env=None).complete(TURNS)
        assert not any("Authorization" in headers for headers in server.headers)


@pytest.mark.parametrize(
    ("url", "options", "told"),
    [
        ("ftp://host/v1", {}, "begins with http:// or https://"),
        ("file:///etc/passwd", {}, "begins with http:// or https://"),
        ("localhost:8000", {}, "begins with http:// or https://"),
        ("http://me:secret@host/v1", {}, "holds a name or a password"),
        ("http://host/v1", {"api_key_env": "NO_SUCH_KEY"}, "no environment variable NO_SUCH_KEY"),
        ("http://host/v1", {"api_key_env": "BROKEN_KEY"}, "no header can hold"),
        ("https://host/v1", {"api_key_env": "HF_TOKEN"}, "a token of the Hub, which goes to no other server"),
        ("https://nothuggingface.co/v1", {"api_key_env": "HF_TOKEN"}, "a token of the Hub, which goes to no other"),
        ("https://router.huggingface.co.evil/v1", {"api_key_env": "HF_TOKEN"}, "a token of the Hub, which goes"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(url, options, told, monkeypatch):
    monkeypatch.setenv("BROKEN_KEY", "a\nb: c")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    with pytest.raises(UserError, match=told) as raised:
        Endpoint(url, "tiny", **options)
    assert "secret" not in str(raised.value)


def test_a_cost_needs_prices():
    with pytest.raises(UserError, match="max_cost needs input_price and output_price"):
        Budget(max_cost=1.0, input_price=1.0)
