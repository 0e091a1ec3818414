"""Drives LoadGen against an engine and judges what comes back.

run.py         a whole run: directory, tests, verdict
preflight.py   the engine checked and measured before a run
query_size.py  samples of an Offline query, and the rate that LoadGen is told
survey.py      how long each test will take, from a minute with the engine
trial.py       an engine measured in a process of its own; trial_child.py: that process
hosting.py     what the engine keeps between the tests of a run
process.py     the child process of a test, as its parent sees it
child.py       the process of one LoadGen test
loadgen.py     the only door to LoadGen
timeline.py    rows of a test over time
sut.py         what faces LoadGen and the engine; offline.py, server.py: what a scenario adds
network.py     the name of a SUT on other hosts
audit.py       the settings of a compliance test, and their removal
find_qps.py    the search for the highest rate that stays VALID
probes.py      the account of that search
final_rate.py  from the found rate to a run that is VALID at full length
performance.py a performance log to VALID and the figures
verdict.py     logs to PASS and the run's verdict
provenance.py  what made the run
"""

from paceline.harness.run import Observer, resume, run

__all__ = ["Observer", "resume", "run"]
