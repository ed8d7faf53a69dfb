"""`python -m notifier -c config.json`: tells people about scores and alerts."""

from notifier.service import Notifier
from shared.runtime import run_service

if __name__ == "__main__":
    run_service("notifier", Notifier().serve)
