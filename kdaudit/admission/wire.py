"""A look at the bytes of a protobuf before anything is parsed: how many messages, how deep, which texts are none.

Parsing turns each two bytes of an empty message into some hundred bytes of objects. This walk allocates nothing but a
stack; it knows from the descriptors which fields are messages, and steps over everything else.
"""

from typing import Any, NamedTuple

from kdaudit.admission.limits import MAX_DEPTH, MAX_MESSAGES

STRING, MESSAGE = 9, 11  # FieldDescriptor.TYPE_STRING, TYPE_MESSAGE
_LENGTH_DELIMITED = 2


class Look(NamedTuple):
    """What a walk over the bytes shows.

    Attributes:
        excess: why the protobuf is not parsed; empty when it may be.
        foreign: the first text field that holds no UTF-8, such as "NodeProto.name"; empty when there is none.
            protobuf hands such a text over as bytes, or not at all, wherever it is looked at.
    """

    excess: str = ""
    foreign: str = ""


def look(data: bytes, descriptor: Any) -> Look:
    """Walk over the bytes of a protobuf before it is parsed.

    Malformed bytes are none of this function's business: it stops there, and the parser will say so.

    Args:
        data: the encoded message.
        descriptor: of its type.
    """
    stack: list[tuple[int, Any]] = [(len(data), descriptor)]  # where each open message ends
    position = messages = 0
    foreign = ""
    while stack:
        end, kind = stack[-1]
        if position >= end:
            stack.pop()
            continue
        tag, position = _varint(data, position, end)
        wire, field = tag & 7, kind.fields_by_number.get(tag >> 3)
        if wire == _LENGTH_DELIMITED:
            length, position = _varint(data, position, end)
            if length > end - position:
                break
            if field is not None and field.type == MESSAGE:
                messages += 1
                if messages > MAX_MESSAGES:
                    return Look(excess=f"more than {MAX_MESSAGES:,} messages")
                if len(stack) > MAX_DEPTH:
                    return Look(excess=f"messages nested deeper than {MAX_DEPTH}")
                stack.append((position + length, field.message_type))
            else:
                if field is not None and field.type == STRING and not foreign:
                    foreign = "" if _is_utf8(data[position : position + length]) else f"{kind.name}.{field.name}"
                position += length
        elif wire == 0:
            _, position = _varint(data, position, end)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            break  # groups are no part of ONNX; the parser refuses what is left
    return Look(foreign=foreign)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A base-128 number and where it ends; one that runs past the end stops the walk there."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    return 0, end
