"""Where the dashboard of a run is served: on its port or, where that is taken, on another."""

from deploy.valkey import check_free, free_port
from shared.config import PREFIX, Dashboard
from shared.errors import Failure

NAME = "dashboard"
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared, not listened on


def place(config: Dashboard) -> tuple[dict[str, str], str]:
    """Variables of the dashboard's environment, and the address to tell people."""
    port = config.port
    try:
        check_free(port, option="dashboard.port")
    except Failure:
        port = free_port()
    section = f"{PREFIX}{NAME.upper()}__"
    host = "localhost" if config.host in _ANYWHERE else config.host
    host = f"[{host}]" if ":" in host else host
    return {f"{section}HOST": config.host, f"{section}PORT": str(port)}, f"http://{host}:{port}/"
