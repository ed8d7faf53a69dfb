"""`python -m predictor -c config.json`"""

from predictor.service import serve
from shared.runtime import run_service

if __name__ == "__main__":
    run_service("predictor", serve)
