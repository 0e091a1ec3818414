"""Results that people see: a page of runs, and the site of a repository of results.

    report   run directories -> one HTML page that holds everything it shows
    site     a repository of submissions -> static pages, and the results as JSON
    workflows  the results repository's own continuous integration

Reads run directories, submission trees and the published results in `data/`; writes files.
"""

from __future__ import annotations

from paceline.report.report import build_report
from paceline.report.site import build_site
from paceline.report.workflows import init_workflows

__all__ = ["build_report", "build_site", "init_workflows"]
