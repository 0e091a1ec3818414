"""The operator's tools: what to know before and while a run takes its hours.

doctor     everything that can be known before anything long starts
forecast   what a minute with the engine says of a run
tune       an engine's settings searched for speed; tuner: the door to Optuna; confirm: pairs of
           measurements; contest: who wins; tuned: the recipe that comes of it
launch_plan, launch_render, launch_follow, launch_container    a run as a Slurm or PBS job, in a
           container, or both
bundle, bundle_files, bundle_wheels    everything a run needs, for a machine without a registry
finding    what it found, as data
subject    the run that a recipe would make, as far as it can be known without its files
software, cards, limits, disk, access, stored, plan    what is looked at
"""

from paceline.operate.doctor import Request, examine
from paceline.operate.finding import Diagnosis, Finding
from paceline.operate.forecast import make_forecast
from paceline.operate.subject import Asked, asked
from paceline.operate.tune import Plan, knobs_of, search_speed

__all__ = [
    "Asked",
    "Diagnosis",
    "Finding",
    "Plan",
    "Request",
    "asked",
    "examine",
    "knobs_of",
    "make_forecast",
    "search_speed",
]
