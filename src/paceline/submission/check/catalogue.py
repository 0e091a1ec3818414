"""The rules of the checker, by name: what must hold, where it is written, how to mend it.

`official` says what the official checker does with a rule: it "checks" it, it "dropped" what its
predecessor checked, or it "never" had it. docs/rules.md is written from here.
"""

from __future__ import annotations

from paceline.submission.check.catalogue_runs import RUN_RULES
from paceline.submission.check.catalogue_tree import TREE_RULES
from paceline.submission.check.findings import CheckRule

__all__ = ["RULES"]

RULES: dict[str, CheckRule] = {rule.name: rule for rule in (*TREE_RULES, *RUN_RULES)}
