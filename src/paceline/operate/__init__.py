"""The operator's tools: what to know before and while a run takes its hours.

doctor     everything that can be known before anything long starts
forecast   what a minute with the engine says of a run
finding    what it found, as data
subject    the run that a recipe would make, as far as it can be known without its files
software, cards, limits, disk, access, stored, plan    what is looked at
"""

from paceline.operate.doctor import Request, examine
from paceline.operate.finding import Diagnosis, Finding
from paceline.operate.forecast import make_forecast
from paceline.operate.subject import Asked, asked

__all__ = ["Asked", "Diagnosis", "Finding", "Request", "asked", "examine", "make_forecast"]
