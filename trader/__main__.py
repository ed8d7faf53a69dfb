"""`python -m trader -c config.json`: trades on signals, on paper or with money."""

from shared.runtime import run_service
from trader.service import Trader, check

if __name__ == "__main__":
    with Trader() as trader:
        run_service("trader", trader.serve, check=check, alone=True)
