"""The features that the config lists."""

from shared.config import Settings
from shared.features.engine import FeatureSet
from shared.features.families import DEPTH_33, FUTUR_38, KLINE_51

SEED = ("seed",)


def feature_names(settings: Settings) -> tuple[str, ...]:
    """Names in schema order: klines, futures, depth. `["seed"]` stands for a whole seed set."""
    kline = settings.features_kline
    return (
        *(KLINE_51 if kline is None or kline == SEED else kline),
        *(FUTUR_38 if settings.features_futur == SEED else settings.features_futur),
        *(DEPTH_33 if settings.features_depth == SEED else settings.features_depth),
    )


def configured(settings: Settings) -> FeatureSet:
    """Raises: Usage: an unknown name, or a fault in the user's feature file."""
    names = feature_names(settings)
    return FeatureSet.of(names, settings.features_file, interval_ms=settings.step_ms)
