"""Features: named, pure functions of the last raster rows, the same bits live and in batch."""

from shared.features.engine import FeatureSet, Window
from shared.features.families import DEPTH_33, FUTUR_38, KLINE_51
from shared.features.user import feature

__all__ = ["DEPTH_33", "FUTUR_38", "KLINE_51", "FeatureSet", "Window", "feature"]
