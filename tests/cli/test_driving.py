"""What a driver on a cluster says: each event a line of its own, whoever else is speaking."""

from __future__ import annotations

import json
import subprocess
import sys

# A signal that comes while a word is being said says one itself, a thousand times a second; so does a thread.
SPEAKS = """
import signal, threading
from bfp.cli.driving import say

signal.signal(signal.SIGALRM, lambda *_: say({"event": "note", "message": "from the handler"}))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
thread = threading.Thread(target=lambda: [say({"event": "note", "message": "t" * 300}) for _ in range(3000)])
thread.start()
for number in range(3000):
    say({"event": "progress", "done": number})
signal.setitimer(signal.ITIMER_REAL, 0, 0)
thread.join()
"""


def test_a_signal_in_the_middle_of_a_word_breaks_neither_off() -> None:
    said = subprocess.run([sys.executable, "-c", SPEAKS], capture_output=True, text=True, timeout=60, check=True)
    events = [json.loads(line) for line in said.stdout.splitlines()]
    assert [event["done"] for event in events if event["event"] == "progress"] == list(range(3000))
    assert sum(event.get("message") == "t" * 300 for event in events) == 3000
    assert any(event.get("message") == "from the handler" for event in events)
