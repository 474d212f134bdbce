"""What Envoy and an external processor say to each other, as records: `envoy.service.ext_proc.v3`.

    bytes ──read──▶ Said(what, headers, body, …)        headers_reply, body_reply, refusal … ──▶ bytes

Described here are the fields we use and no others, by their numbers in Envoy's API (1.40, external_processor.proto,
processing_mode.proto, base.proto, http_status.proto); fields that are not known are passed over. The descriptors live
in a pool of their own: whoever loads Envoy's own into this process is not disturbed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
# Gateway API Inference Extension, proposal 004, v1.0.0: where the pick goes, what limits it, who answered.
DESTINATION, DESTINATION_SPACE = "x-gateway-destination-endpoint", "envoy.lb"
SUBSET, SUBSET_SPACE = "x-gateway-destination-endpoint-subset", "envoy.lb.subset_hint"
SERVED = "x-gateway-destination-endpoint-served"
# Envoy: "recommended to be no greater than 64K bytes" for one streamed response.
CHUNK_BYTES = 60 << 10


class Malformed(Exception):
    """A message that is none of this protocol, or comes where it cannot."""


class Part(StrEnum):
    """The parts of an exchange, by their fields in ProcessingRequest."""

    REQUEST_HEADERS = "request_headers"
    RESPONSE_HEADERS = "response_headers"
    REQUEST_BODY = "request_body"
    RESPONSE_BODY = "response_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_TRAILERS = "response_trailers"


class Mode(IntEnum):
    """How Envoy sends a body: ProcessingMode.BodySendMode."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    GRPC = 5


class Modes(msgspec.Struct, frozen=True):
    """How bodies come. A gateway that does not say streams them in full duplex, as proposal 004 asks of it."""

    request: Mode = Mode.FULL_DUPLEX_STREAMED
    response: Mode = Mode.FULL_DUPLEX_STREAMED
    body_comes_unasked: bool = False  # the request's, before its headers are answered


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One message from Envoy."""

    part: Part
    headers: dict[str, str] = {}  # names in lower case
    body: bytes = b""
    is_last: bool = False  # of its direction
    subset: frozenset[str] | None = None  # endpoints the pick must be one of; None: any
    served: str | None = None  # the endpoint that answered
    modes: Modes | None = None  # told by the first message
    wants_no_reply: bool = False


# Field numbers are facts of the protocol, names on the wire there are none: everything that is text there is read as
# bytes here, so that one odd header cannot make a whole message unreadable. "*" is a repeated field.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Status": {"code": (1, "int32")},
    "Value": {"text": (3, "bytes"), "struct": (5, "Struct"), "list": (6, "List")},
    "List": {"values": (1, "*Value")},
    "Field": {"key": (1, "bytes"), "value": (2, "Value")},
    "Struct": {"fields": (1, "*Field")},
    "Space": {"key": (1, "bytes"), "value": (2, "Struct")},
    "Metadata": {"spaces": (1, "*Space")},
    "Header": {"key": (1, "bytes"), "value": (2, "bytes"), "raw_value": (3, "bytes")},
    "Headers": {"headers": (1, "*Header")},
    "HttpHeaders": {"headers": (1, "Headers"), "end_of_stream": (3, "bool")},
    "HttpBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "HttpTrailers": {"trailers": (1, "Headers")},
    "Protocol": {"request": (1, "int32"), "response": (2, "int32"), "unasked": (3, "bool")},
    "ProcessingRequest": {
        "request_headers": (2, "HttpHeaders"),
        "response_headers": (3, "HttpHeaders"),
        "request_body": (4, "HttpBody"),
        "response_body": (5, "HttpBody"),
        "request_trailers": (6, "HttpTrailers"),
        "response_trailers": (7, "HttpTrailers"),
        "metadata": (8, "Metadata"),
        "observability_mode": (10, "bool"),
        "protocol": (11, "Protocol"),
    },
    "SetHeader": {"header": (1, "Header"), "append_action": (3, "int32")},
    "HeaderMutation": {"set_headers": (1, "*SetHeader")},
    "StreamedBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "BodyMutation": {"body": (1, "bytes"), "streamed": (3, "StreamedBody")},
    "Common": {"headers": (2, "HeaderMutation"), "body": (3, "BodyMutation")},
    "Answer": {"response": (1, "Common")},
    "Trailers": {},
    "Immediate": {
        "status": (1, "Status"),
        "headers": (2, "HeaderMutation"),
        "body": (3, "bytes"),
        "details": (5, "bytes"),
    },
    "ProcessingResponse": {
        "request_headers": (1, "Answer"),
        "response_headers": (2, "Answer"),
        "request_body": (3, "Answer"),
        "response_body": (4, "Answer"),
        "request_trailers": (5, "Trailers"),
        "response_trailers": (6, "Trailers"),
        "immediate": (7, "Immediate"),
        "dynamic_metadata": (8, "Struct"),
    },
}
_PACKAGE = "jevons.extproc"
_SCALARS = {
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
}
_OVERWRITE = 2  # HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="jevons/extproc.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number)
            added.label = added.LABEL_REPEATED if kind.startswith("*") else added.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            added.type = _SCALARS.get(kind, added.TYPE_MESSAGE)
            if added.type == added.TYPE_MESSAGE:
                added.type_name = f".{_PACKAGE}.{kind}"
    return file


def _classes(*names: str) -> Iterator[Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_described())
    for name in names:
        yield message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ProcessingRequest, ProcessingResponse = _classes("ProcessingRequest", "ProcessingResponse")


def read(raw: bytes) -> Said:
    """Raises Malformed if it is no ProcessingRequest, or none of its known parts."""
    try:
        message = ProcessingRequest.FromString(raw)
    except DecodeError as error:
        raise Malformed(f"ProcessingRequest: cannot be read: {error}") from error
    part = next((part for part in Part if message.HasField(part)), None)
    if part is None:
        raise Malformed(f"ProcessingRequest: must hold one of {', '.join(Part)}, got none of them")
    content, spaces = getattr(message, part), message.metadata.spaces
    is_body, is_headers = part.endswith("body"), part.endswith("headers")
    return Said(
        part=part,
        headers=dict(_headers(content.headers.headers)) if is_headers else {},
        body=content.body if is_body else b"",
        is_last=content.end_of_stream if is_body or is_headers else True,
        subset=_subset(spaces),
        served=next((value.text.decode("latin-1") for value in _values(spaces, DESTINATION_SPACE, SERVED)), None),
        modes=_modes(message.protocol) if message.HasField("protocol") else None,
        wants_no_reply=message.observability_mode,
    )


def go_on(part: Part, headers: Mapping[str, str] | None = None) -> bytes:
    """The answer to a part that stays as it is, but for these headers; for a body, in all modes but full duplex."""
    message = ProcessingResponse()
    answer = getattr(message, part)
    answer.SetInParent()
    if headers:
        _set(answer.response.headers, headers)
    return bytes(message.SerializeToString())


def send_to(part: Part, endpoints: str, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    """The answer that carries the pick.

    Args:
        part: the request's headers, or its whole body where that is buffered.
        endpoints: HOST:PORT, the next ones to try after commas.
        headers: more to set in the request.
        body: goes to the engine instead of the buffered one; None: that one.
    """
    message = ProcessingResponse()
    common = getattr(message, part).response
    _set(common.headers, {DESTINATION: endpoints, **headers})
    if body is not None:
        common.body.body = body
    space = message.dynamic_metadata.fields.add(key=DESTINATION_SPACE.encode())
    space.value.struct.fields.add(key=DESTINATION.encode()).value.text = endpoints.encode()
    return bytes(message.SerializeToString())


def stream(part: Part, body: bytes, is_last: bool) -> Iterator[bytes]:
    """A body, or some of it, as full duplex has it sent back: in pieces, the last of which may end it."""
    for start in range(0, max(len(body), 1), CHUNK_BYTES):
        message = ProcessingResponse()
        streamed = getattr(message, part).response.body.streamed
        streamed.body = body[start : start + CHUNK_BYTES]
        streamed.end_of_stream = is_last and start + CHUNK_BYTES >= len(body)
        streamed.SetInParent()
        yield bytes(message.SerializeToString())


def answer_at_once(status: int, body: bytes, headers: Mapping[str, str], details: str) -> bytes:
    """The client gets this answer, no engine is asked. `details` is for Envoy's log."""
    message = ProcessingResponse()
    message.immediate.status.code = status
    message.immediate.body = body
    message.immediate.details = details.encode()
    _set(message.immediate.headers, headers)
    return bytes(message.SerializeToString())


def _headers(found: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for header in found:
        yield header.key.decode("latin-1").lower(), (header.raw_value or header.value).decode("latin-1")


def _set(mutation: Any, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        added = mutation.set_headers.add(append_action=_OVERWRITE)
        added.header.key, added.header.raw_value = name.encode(), value.encode("latin-1")


def _values(spaces: Iterable[Any], space: str, key: str) -> Iterator[Any]:
    """What the metadata has under these names."""
    for found in spaces:
        if found.key == space.encode():
            yield from (field.value for field in found.value.fields if field.key == key.encode())


def _subset(spaces: Iterable[Any]) -> frozenset[str] | None:
    hints = list(_values(spaces, SUBSET_SPACE, SUBSET))
    if not hints:
        return None
    texts = [value.text for hint in hints for value in hint.list.values] + [hint.text for hint in hints]
    return frozenset(name.strip() for text in texts for name in text.decode("latin-1").split(",") if name.strip())


def _modes(protocol: Any) -> Modes:
    try:
        return Modes(Mode(protocol.request), Mode(protocol.response), protocol.unasked)
    except ValueError as error:
        raise Malformed(f"protocol_config: {error}; this picker knows {', '.join(Mode.__members__)}") from error
