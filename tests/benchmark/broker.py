"""A Kafka broker that says what a topic is, and acknowledges what is produced; or never answers that, as one does that hangs."""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections.abc import Callable
from typing import Any

from kafka.protocol.admin import DescribeConfigsRequest, DescribeConfigsResponse
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse
from kafka.protocol.producer import ProduceRequest, ProduceResponse

HOST_ID = 1
VERSIONS = {ApiVersionsRequest: 2, MetadataRequest: 12, DescribeConfigsRequest: 4, ProduceRequest: 9}
"""Requests that are known, and up to which version."""


class Broker:
    """One broker with one topic, whose partitions claim three replicas in sync."""

    def __init__(self, host: str, port: int, topic: str, partitions: int, config: dict[str, str], silent: bool) -> None:
        self._host, self._port, self._topic, self._partitions, self._config = host, port, topic, partitions, config
        self._silent = silent
        self._answers: dict[int, tuple[Any, Callable[[Any], Any]]] = {
            ApiVersionsRequest.API_KEY: (ApiVersionsRequest, self._versions),
            MetadataRequest.API_KEY: (MetadataRequest, self._metadata),
            DescribeConfigsRequest.API_KEY: (DescribeConfigsRequest, self._configs),
            ProduceRequest.API_KEY: (ProduceRequest, self._produced),
        }

    async def start(self) -> asyncio.Server:
        """Listen."""
        return await asyncio.start_server(self._serve, self._host, self._port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                frame = await reader.readexactly(size)
                key, version, correlation = struct.unpack(">hhi", frame[:8])
                if key == ProduceRequest.API_KEY and self._silent:
                    continue
                request, answer = self._answers[key]
                response = answer(request.decode(frame, version=version, header=True))
                response.API_VERSION = version
                response.with_header(correlation)
                writer.write(response.encode(header=True, framed=True))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _produced(self, request: Any) -> Any:
        response = ProduceResponse.TopicProduceResponse
        topics = [
            response(
                name=topic.name,
                partition_responses=[
                    response.PartitionProduceResponse(
                        index=each.index, error_code=0, base_offset=0, log_append_time_ms=1, log_start_offset=0, record_errors=[],
                        error_message=None,
                    )
                    for each in topic.partition_data
                ],
            )
            for topic in request.topic_data
        ]  # fmt: skip
        return ProduceResponse(responses=topics, throttle_time_ms=0)

    def _versions(self, request: Any) -> Any:
        keys = [
            ApiVersionsResponse.ApiVersion(api_key=kind.API_KEY, min_version=0, max_version=most) for kind, most in VERSIONS.items()
        ]
        return ApiVersionsResponse(error_code=0, api_keys=keys, throttle_time_ms=0)

    def _metadata(self, request: Any) -> Any:
        response = MetadataResponse
        partition = response.MetadataResponseTopic.MetadataResponsePartition
        partitions = [
            partition(
                error_code=0, partition_index=number, leader_id=HOST_ID, leader_epoch=0,
                replica_nodes=[1, 2, 3], isr_nodes=[1, 2, 3], offline_replicas=[],
            )
            for number in range(self._partitions)
        ]  # fmt: skip
        topic = response.MetadataResponseTopic(
            error_code=0, name=self._topic, topic_id=uuid.UUID(int=1), is_internal=False, partitions=partitions,
            authorized_operations=set(),
        )  # fmt: skip
        broker = response.MetadataResponseBroker(node_id=HOST_ID, host=self._host, port=self._port, rack=None)
        return response(throttle_time_ms=0, brokers=[broker], cluster_id="c", controller_id=HOST_ID, topics=[topic])

    def _configs(self, request: Any) -> Any:
        result = DescribeConfigsResponse.DescribeConfigsResult
        configs = [
            result.DescribeConfigsResourceResult(
                name=name, value=value, read_only=False, config_source=1, is_sensitive=False, synonyms=[], config_type=1,
                documentation=None,
            )
            for name, value in self._config.items()
        ]  # fmt: skip
        each = result(error_code=0, error_message=None, resource_type=2, resource_name=self._topic, configs=configs)
        return DescribeConfigsResponse(throttle_time_ms=0, results=[each])
