"""Why the system said what it said: a signal taken apart, and all of it computed again.

`Explainer` answers for any signal whose candles are still on the bus. `itb explain`, the dashboard
and messages to people show what it finds.
"""

from shared.explain.explainer import Explainer
from shared.explain.explanation import Explanation, signal_place

__all__ = ["Explainer", "Explanation", "signal_place"]
