"""Drives LoadGen against an engine and judges what comes back.

run.py         a whole run: directory, tests, verdict
preflight.py   the engine checked and measured before a run
child.py       the process of one LoadGen test
loadgen.py     the only door to LoadGen
offline.py     the SUT of the Offline scenario
audit.py       the settings of a compliance test, and their removal
verdict.py     logs to VALID, PASS and the figures
provenance.py  what made the run
"""

from paceline.harness.run import Observer, resume, run

__all__ = ["Observer", "resume", "run"]
