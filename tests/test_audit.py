"""`develop.py audit`: a known vulnerability fails, a missing network does not, and neither is passed off as the other."""

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("develop", Path(__file__).resolve().parent.parent / "develop.py")
develop = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(develop)

FINE = {"name": "fine", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([FINE], 0, ["audited: 1 versions of constraints.txt, none of them known to be vulnerable"]),
        ([FINE, BAD], 1, ["vulnerable: bad 2.0: PYSEC-1, mended in 2.1"]),
        ([UNKNOWN], 0, ["not audited: 1 of 1 could not be looked up (torch …)"]),
        (
            [BAD, UNKNOWN],
            1,
            ["vulnerable: bad 2.0: PYSEC-1, mended in 2.1", "not audited: 1 of 2 could not be looked up (torch …)"],
        ),
    ],
)
def test_what_is_known_is_told_apart_from_what_is_not(packages, code, said):
    assert develop.audited({"dependencies": packages}) == (code, said)


def test_without_a_network_it_says_so_and_fails_nothing(monkeypatch, capsys):
    monkeypatch.setattr(develop, "VULNERABILITIES", "http://127.0.0.1:9/none")
    develop.audit([])
    assert capsys.readouterr().out.startswith("not audited: http://127.0.0.1:9/none cannot be asked from here")
