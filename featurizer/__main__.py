"""`python -m featurizer -c config.json`"""

from featurizer.service import serve
from shared.features.configured import configured
from shared.runtime import run_service

if __name__ == "__main__":
    run_service("featurizer", serve, check=configured)
