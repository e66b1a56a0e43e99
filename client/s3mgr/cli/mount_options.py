"""Reading ``-o name=value``: by the types and ranges of `MountOptions`, with errors made for people."""

import difflib
import grp
import math
import pwd
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Final, Literal, get_args, get_origin, get_type_hints

import msgspec

from s3mgr.errors import InvalidRequest
from s3mgr.schema import MountOptions, option_docs

Value = bool | int | float | str

TRUE: Final = ("true", "yes", "on", "1")
FALSE: Final = ("false", "no", "off", "0")
# As in mount(8).
SHORTHANDS: Final = {"ro": ("read_only", "true"), "rw": ("read_only", "false")}
_SIZE_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_WHOLE: Final = re.compile(r"(-?[0-9]+)")
_SIZE: Final = re.compile(r"(-?[0-9]+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SEE: Final = "the options are described by: s3mgr mount --help-options"


def parse_options(given: Iterable[str]) -> dict[str, Value]:
    r"""Read the arguments of every ``-o``: comma lists of ``name=value`` or the bare name of a boolean.

    A comma in a value is written ``\,`` and a backslash ``\\``. Sizes (``*_bytes``) take K, M, G and T,
    powers of 1,024; uid and gid take names.

    Returns:
        Values by option name, of the types that `MountOptions` declares, each within its range.

    Raises:
        InvalidRequest: an unknown option, a value of the wrong type or out of range, or two values for one.
    """
    values: dict[str, Value] = {}
    for item in (item for text in given for item in split_escaped(text)):
        name, separator, text = item.partition("=")
        name = name.strip()
        if name in SHORTHANDS and not separator:
            name, text = SHORTHANDS[name]
        elif not separator:
            text = _bare(name)
        value = _parse(name, text)
        if name in values and values[name] != value:
            raise InvalidRequest(f"option '{name}' is given twice, with different values")
        values[name] = value
    return values


def split_escaped(text: str) -> list[str]:
    """Split at commas that no backslash escapes; empty items are dropped."""
    items, current, escaped = [], "", False
    for char in text:
        if escaped:
            current += char if char in ",\\" else "\\" + char
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == ",":
            items.append(current)
            current = ""
        else:
            current += char
    items.append(current + ("\\" if escaped else ""))
    return [item for item in items if item.strip()]


def _hints() -> dict[str, object]:
    return get_type_hints(MountOptions, include_extras=True)


def _split_annotation(annotation: object) -> tuple[object, list[msgspec.Meta]]:
    """Return the plain type of an option's annotation and every constraint on the way to it."""
    metas: list[msgspec.Meta] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *extras = get_args(annotation)
            metas += [extra for extra in extras if isinstance(extra, msgspec.Meta)]
        elif get_origin(annotation) not in (None, Literal):  # X | None
            annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
        else:
            return annotation, metas


def _known(name: str) -> object:
    hints = _hints()
    if name in hints:
        return hints[name]
    nearest = difflib.get_close_matches(name, [*hints, *SHORTHANDS], n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise InvalidRequest(f"unknown option '{name}'", hint=hint + _SEE)


def _bare(name: str) -> str:
    plain, _ = _split_annotation(_known(name))
    if plain is not bool:
        raise InvalidRequest(f"option '{name}' needs a value", hint=f"write {name}=VALUE; {_SEE}")
    return "true"


def _parse(name: str, text: str) -> Value:
    plain, metas = _split_annotation(_known(name))
    if get_origin(plain) is Literal:
        allowed = [str(choice) for choice in get_args(plain)]
        if text not in allowed:
            raise InvalidRequest(
                f"option '{name}' must be {_either(allowed)}, not '{text}'", hint=_SEE
            )
        return text
    value = _PARSERS[plain](name, text)
    try:
        msgspec.convert({name: value}, MountOptions)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(
            f"option '{name}' must be {_range(name, metas)}, not {text}", hint=_SEE
        ) from exc
    return value


def _parse_bool(name: str, text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise InvalidRequest(f"option '{name}' must be true or false, not '{text}'", hint=_SEE)


def _parse_int(name: str, text: str) -> int:
    is_size = name.endswith("_bytes")
    match = (_SIZE if is_size else _WHOLE).fullmatch(text)
    if match is None and name in ("uid", "gid"):
        return _parse_owner(name, text)
    if match is None:
        form = "a size such as 16M" if is_size else "a whole number"
        raise InvalidRequest(f"option '{name}' must be {form}, not '{text}'", hint=_SEE)
    return int(match[1]) * (_SIZE_UNITS[match[2].upper()] if is_size else 1)


def _parse_owner(name: str, text: str) -> int:
    try:
        return pwd.getpwnam(text).pw_uid if name == "uid" else grp.getgrnam(text).gr_gid
    except KeyError as exc:
        kind = "user" if name == "uid" else "group"
        raise InvalidRequest(
            f"option '{name}' must be a {kind} of this machine or a number, not '{text}'", hint=_SEE
        ) from exc


def _parse_float(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not math.isfinite(value):
        raise InvalidRequest(f"option '{name}' must be a number, not '{text}'", hint=_SEE)
    return value


_PARSERS: Final[dict[object, Callable[[str, str], Value]]] = {
    bool: _parse_bool,
    int: _parse_int,
    float: _parse_float,
    str: lambda _name, text: text,
}


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _range(name: str, metas: list[msgspec.Meta]) -> str:
    """Say what *name* accepts."""
    low: str | None = None
    high: str | None = None
    for meta in metas:
        if meta.pattern is not None:
            return "an octal mode such as 0644"
        if meta.max_length is not None:
            return f"at most {meta.max_length} characters long"
        low = f"{_number(name, meta.ge)}" if meta.ge is not None else low
        low = f"more than {_number(name, meta.gt)}" if meta.gt is not None else low
        high = _number(name, meta.le) if meta.le is not None else high
    if low is None or high is None:
        return "within its range"
    if low.startswith("more"):
        return f"{low} and at most {high}"
    return f"between {low} and {high}"


def _number(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        for unit in ("T", "G", "M", "K"):
            count, rest = divmod(int(value), _SIZE_UNITS[unit])
            if count and not rest:
                return f"{count}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def options_text() -> str:
    """Describe every option, for ``s3mgr mount --help-options``."""
    import textwrap

    text = ""
    for doc in option_docs():
        default = doc.default or "see below"
        live = ", may change while mounted" if doc.live else ""
        text += f"{doc.name}  ({doc.type}; default: {default}{live})\n"
        text += textwrap.fill(
            doc.description, 78, initial_indent="    ", subsequent_indent="    "
        ).rstrip()
        text += "\n"
    return text
