"""The submission checker: stricter and clearer than the official one, and agreeing with it.

    tree             the whole check; `check_tree` is the entry
    structure        divisions, submitters, systems, results
    hygiene          names, links, sizes, secrets
    performance, summary, accuracy, test06   a result's runs
    description      system description, measurements, user.conf, README
    catalogue*       the rules: text, source, what to do
    summary_csv      results as the official summary.csv has them
    official         the official checker beside ours
    sample_tree      a valid tree out of small templates; benchmarks and tests use it

Nothing here follows a link, waits for a pipe, or reads more of a file than the file can hold.
"""

from __future__ import annotations

from paceline.submission.check.catalogue import RULES
from paceline.submission.check.findings import CheckRule, TreeFinding
from paceline.submission.check.tree import CheckedTree, check_tree, examine_tree

__all__ = ["RULES", "CheckRule", "CheckedTree", "TreeFinding", "check_tree", "examine_tree"]
