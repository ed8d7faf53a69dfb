"""The features that the config lists."""

from shared.config import Settings
from shared.errors import Usage
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
    """What the services compute.

    Raises:
        Usage: an unknown name, a fault in the user's feature file, or features of another symbol
            that is not there.
    """
    names = feature_names(settings)
    features = FeatureSet.of(names, settings.features_file, interval_ms=settings.step_ms)
    if "other" in features.sources:
        if settings.features_other is None:
            raise Usage("features read another symbol's candles: name it as `features_other`")
        if settings.features_other not in settings.symbols:
            raise Usage(
                f"features_other: {settings.features_other} is not one of `symbols`, so nobody"
                " would collect its candles; add it there"
            )
    return features
