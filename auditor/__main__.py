"""`python -m auditor -c config.json`: proves the numbers, and keeps the record of what was said."""

import os

from auditor.service import serve
from shared.features.configured import configured
from shared.runtime import run_service

_NICENESS = 10  # whatever else runs on the machine comes first

if __name__ == "__main__":
    os.nice(_NICENESS)
    run_service("auditor", serve, check=configured)
