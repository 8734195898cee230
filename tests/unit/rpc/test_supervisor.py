from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dst_grpc.rpc.settings import Settings
from dst_grpc.rpc.settings_sources import SettingsError, load_settings
from dst_grpc.rpc.supervisor import Assignment, assignments


def of(
    devices: str, *, processors: int = 8, environment: dict[str, str] | None = None, **settings: object
) -> list[Assignment]:
    return assignments(load_settings({"devices": devices, **settings}), environment or {}, processors)


def test_ports_follow_one_another() -> None:
    found = of("cpu,cpu", port=7000, metrics_port=8000, health_port=9000)
    ports = [(one.settings.port, one.settings.metrics_port, one.settings.health_port) for one in found]
    assert ports == [(7000, 8000, 9000), (7001, 8001, 9001)]
    assert [(each.number, each.device) for each in found] == [(0, "cpu"), (1, "cpu")]
    assert all(each.settings.devices == () and each.settings.device == "cpu" for each in found)


def test_ports_that_the_system_chooses_stay_its_choice() -> None:
    assert [(each.settings.port, each.settings.metrics_port) for each in of("cpu,cpu", port=0)] == [(0, None)] * 2


def test_sockets_are_numbered() -> None:
    hosts = [each.settings.host for each in of("cpu,cpu", host="unix:/run/dst.sock")]
    assert hosts == ["unix:/run/dst.sock.0", "unix:/run/dst.sock.1"]


@pytest.mark.parametrize(
    ("listed", "seen"), [(None, ["0", "3"]), ("4, 5,6,7", ["4", "7"]), ("GPU-a,GPU-b,GPU-c,GPU-d", ["GPU-a", "GPU-d"])]
)
def test_each_process_sees_its_own_gpu_alone(listed: str | None, seen: list[str]) -> None:
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    found = of("cuda:0,cuda:3", environment=environment)
    assert [each.environment["CUDA_VISIBLE_DEVICES"] for each in found] == seen
    assert [each.settings.device for each in found] == ["cuda:0", "cuda:0"]


def test_a_gpu_that_is_not_there_is_left_for_the_process_to_say() -> None:
    (found,) = of("cuda:2", environment={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert (found.settings.device, found.environment["CUDA_VISIBLE_DEVICES"]) == ("cuda:2", "0,1")


def test_threads_are_shared_out_unless_they_are_given() -> None:
    assert [each.environment["OMP_NUM_THREADS"] for each in of("cpu,cpu", processors=5)] == ["2", "2"]
    assert [each.environment["OMP_NUM_THREADS"] for each in of("cpu,cpu", processors=1)] == ["1", "1"]
    (found,) = of("cpu", environment={"OMP_NUM_THREADS": "7"})
    assert found.environment["OMP_NUM_THREADS"] == "7"


def test_the_service_manager_hears_from_the_supervisor_alone() -> None:
    (found,) = of("cpu", environment={"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1", "HOME": "/"})
    assert found.environment == {"HOME": "/", "OMP_NUM_THREADS": "8"}


def test_settings_reach_a_process_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    given: dict[str, Any] = {
        "models": {"m": str(folder)},
        "trusted_proxies": "10.0.0.0/8",
        "pin": "m",
        "budget_bytes": 5,
        "strict": True,
    }
    (found,) = of("cpu", **given)
    told = Settings.model_validate_json(found.settings.model_dump_json())
    assert dict(told) == dict(found.settings)


def test_devices_are_checked() -> None:
    for devices in ("cpu,gpu", "auto"):
        with pytest.raises(SettingsError, match="is not a device"):
            load_settings({"devices": devices})
    with pytest.raises(SettingsError, match="either device or devices"):
        load_settings({"devices": "cpu", "device": "cpu"})
    with pytest.raises(SettingsError, match="port = 65535 leaves no ports for 2 devices"):
        load_settings({"devices": "cpu,cpu", "port": 65535})
    assert load_settings({"devices": ["cpu,cuda:1", "mps"]}).devices == ("cpu", "cuda:1", "mps")
