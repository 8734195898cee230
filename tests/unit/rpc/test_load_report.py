from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from dst_grpc.domain.server_info import DeviceLoad
from dst_grpc.rpc.load_report import LOAD_KEY, LoadReport


def report_class() -> Any:
    """`xds.data.orca.v3.OrcaLoadReport`, with those of its fields that are plain numbers.

    Not that of xds-protos: that package overwrites modules of opentelemetry-proto and googleapis-common-protos.
    """
    file = FileDescriptorProto(name="orca_load_report.proto", package="xds.data.orca.v3", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    numbers = {"cpu_utilization": 1, "mem_utilization": 2, "rps_fractional": 6, "eps": 7, "application_utilization": 9}
    for name, number in numbers.items():
        kind, label = FieldDescriptorProto.TYPE_DOUBLE, FieldDescriptorProto.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport"))


REPORT = report_class()


class Rig:
    """A report about what a test says."""

    def __init__(self, *waits: float) -> None:
        self.now = 100.0
        self.waits = list(waits)
        self.asked = 0
        self.report = LoadReport(self._loads, clock=lambda: self.now)

    def _loads(self) -> list[DeviceLoad]:
        self.asked += 1
        return [DeviceLoad(device=f"cuda:{i}", expected_wait=w, waiting_requests=1) for i, w in enumerate(self.waits)]

    def read(self) -> Any:
        key, value = self.report.of_ended_call()
        assert key == LOAD_KEY == "endpoint-load-metrics-bin"
        return REPORT.FromString(value)


def test_it_tells_the_longest_wait_of_any_device() -> None:
    assert Rig(0.5, 2.5).read().application_utilization == 2.5


@pytest.mark.parametrize("waits", [(), (0.0,)])
def test_an_idle_server_is_not_taken_for_one_that_reports_nothing(waits: tuple[float, ...]) -> None:
    assert Rig(*waits).read().application_utilization == 0.01


def test_it_is_made_anew_ten_times_a_second_at_most_and_counts_calls() -> None:
    rig = Rig(1.0)
    for _ in range(9):
        rig.read()
    assert rig.asked == 1
    rig.waits[0] = 3.0
    rig.now += 0.5
    report = rig.read()
    assert (report.application_utilization, report.rps_fractional) == (3.0, 20.0)
    assert rig.asked == 2
    rig.now += 2.0
    assert rig.read().rps_fractional == 0.5
