"""A process that pushes and pulls as told on standard input, a line of JSON each, with the real client: one import for many.

Run by the tests with the environment of a loopback Hub. The client's pauses between its own attempts are cut short. With
`certify: false` the certificate's process, which `test_publishing.py` has elsewhere, is left out and the download kept.
"""

import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hf_peft_recipes.errors import RecipeError
from hf_peft_recipes.hub import publishing, pulling
from hf_peft_recipes.hub.address import parse_address
from hf_peft_recipes.hub.request import PushRequest

sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))
certify = publishing.certify_published


def download_only(repo_id: str, commit: str) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        pulling.download(repo_id, commit, Path(scratch) / "published")
    return {"status": "passed", "checks": [], "figures": {}}


def act(told: dict) -> object:
    publishing.certify_published = certify if told.get("certify", True) else download_only
    if told["verb"] == "push":
        return publishing.push(Path(told["folder"]), PushRequest(told["repo_id"], **told.get("options", {})))
    if told["verb"] == "pull":
        return pulling.pull(parse_address(told["name"]), Path(told["folder"]))
    raise ValueError(told)


for line in sys.stdin:
    try:
        answer = {"result": act(json.loads(line))}
    except RecipeError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": repr(error), "exit_code": 1}
    print(json.dumps(answer), flush=True)
