"""Command lines that change images, and what must be true of the images however they end.

A scenario makes its files in a folder and names one command to be run there. Between beginning and
end every sector holds what it held before or what it is to hold; what is shown by images whose
contents the command does not change stays throughout; a new file is whole or is no image.
"""

from __future__ import annotations

from tests.campaigns.scenarios.changes import changes
from tests.campaigns.scenarios.new_files import new_files
from tests.campaigns.scenarios.readers import readers
from tests.campaigns.scenarios.writes import writes

#: Every scenario, by name: those that change something first.
SCENARIOS = {
    scenario.name: scenario
    for part in (writes(), changes(), new_files(), readers())
    for scenario in part
}
CHANGING = {name: one for name, one in SCENARIOS.items() if not one.reads}
READING = {name: one for name, one in SCENARIOS.items() if one.reads}
