"""A look at the bytes of a protobuf before anything is parsed: how many messages they hold and how deep.

Parsing turns each two bytes of an empty message into some hundred bytes of objects. This walk allocates nothing but a
stack; it knows from the descriptors which fields are messages, and steps over everything else.
"""

from typing import Any

from kdaudit.admission.limits import MAX_DEPTH, MAX_MESSAGES

MESSAGE = 11  # FieldDescriptor.TYPE_MESSAGE
_LENGTH_DELIMITED = 2


def too_much(data: bytes, descriptor: Any) -> str:
    """Why a protobuf is not parsed; empty when it may be.

    Malformed bytes are none of this function's business: it stops there, and the parser will say so.

    Args:
        data: the encoded message.
        descriptor: of its type.
    """
    stack: list[tuple[int, Any]] = [(len(data), descriptor)]  # where each open message ends
    position = messages = 0
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
                return ""
            if field is not None and field.type == MESSAGE:
                messages += 1
                if messages > MAX_MESSAGES:
                    return f"more than {MAX_MESSAGES:,} messages"
                if len(stack) > MAX_DEPTH:
                    return f"messages nested deeper than {MAX_DEPTH}"
                stack.append((position + length, field.message_type))
            else:
                position += length
        elif wire == 0:
            _, position = _varint(data, position, end)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            return ""  # groups are no part of ONNX; the parser refuses what is left
    return ""


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
