"""`python -m trader -c config.json`: decides on signals and journals it."""

from shared.runtime import run_service
from trader.service import serve

if __name__ == "__main__":
    run_service("trader", serve)
