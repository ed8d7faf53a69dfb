"""Where a run's dashboard is served."""

import socket

from deploy import page
from shared.config import Dashboard, Settings
from tests.valkey import free_port


def test_the_dashboard_has_the_configured_place() -> None:
    port = free_port()
    variables, address = page.place(Dashboard(port=port))
    assert address == f"http://127.0.0.1:{port}/"
    assert variables == {
        "ITB_DASHBOARD__HOST": "127.0.0.1", "ITB_DASHBOARD__PORT": str(port),
    }  # fmt: skip
    assert page.place(Dashboard(port=port, host="::1"))[1] == f"http://[::1]:{port}/"
    everywhere = page.place(Dashboard(port=port, host="0.0.0.0"))  # noqa: S104  # nobody listens
    assert everywhere[1] == f"http://localhost:{port}/"


def test_where_its_port_is_taken_the_dashboard_has_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        variables, address = page.place(Settings(dashboard={"port": port}).dashboard)
    assert variables["ITB_DASHBOARD__PORT"] != str(port)
    assert address.endswith(f":{variables['ITB_DASHBOARD__PORT']}/")
