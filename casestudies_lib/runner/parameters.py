"""The parameters cell of a chapter: what may be set from outside, and the check that happens before a kernel starts."""

import ast
import difflib
import io
import math
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from casestudies_lib.runner.chapters import ChapterError, source_of, tags_of
from casestudies_lib.runner.errors import Mistake

Value = bool | int | float | str
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_COMMENT = re.compile(r"#\s*(?P<meaning>\S.*?)\s*\[(?P<unit>[^:\[\]]+):\s*(?P<allowed>[^\[\]]+?)\s*\]\s*")
_RANGE = re.compile(rf"({_NUMBER})\s+to\s+({_NUMBER})")
_GRAMMAR = "NAME = LITERAL  # meaning [unit: LOW to HIGH | one of a, b | any]"


class ParameterError(Mistake):
    """A value from outside does not fit what the parameters cell allows."""


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell."""

    name: str
    default: Value
    meaning: str
    unit: str
    allowed: str
    limits: tuple[float, float] | None = None
    choices: tuple[Value, ...] | None = None


def read_parameters(notebook: dict, name: str) -> list[Parameter]:
    """Return what the parameters cell of a notebook declares.

    Args:
        notebook: the notebook as a dictionary.
        name: its file name, for messages.

    Raises:
        ChapterError: no parameters cell, more than one, or a line that is not of the documented form.
    """
    cells = [cell for cell in notebook["cells"] if "parameters" in tags_of(cell)]
    if len(cells) != 1 or cells[0]["cell_type"] != "code":
        raise ChapterError(
            f"{name} has {len(cells) or 'no'} parameters cell{'s' if len(cells) > 1 else ''}; "
            f"tag exactly one code cell 'parameters' and write in it lines such as: {_GRAMMAR}"
        )
    return parse_cell(source_of(cells[0]), name)


def parse_cell(source: str, name: str) -> list[Parameter]:
    """Return the parameters that a cell declares; raises as `read_parameters` does."""
    try:
        statements = ast.parse(source).body
        comments = _comments(source)
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise ChapterError(f"{name}: parameters cell is not Python: {reason}") from error
    declared = [_parse_line(statement, comments, name) for statement in statements]
    if len({statement.lineno for statement in statements}) < len(statements):
        raise ChapterError(f"{name}: parameters cell has two assignments on one line; write one a line")
    names = [parameter.name for parameter in declared]
    for doubled in {entry for entry in names if names.count(entry) > 1}:
        raise ChapterError(f"{name}: parameters cell sets {doubled} twice; keep one line")
    return declared


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def _parse_line(statement: ast.stmt, comments: dict[int, str], name: str) -> Parameter:
    where = f"{name}: parameters cell, line {statement.lineno}"
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)], value=value) if statement.lineno == statement.end_lineno:
            default = _literal(value, where)
        case _:
            raise ChapterError(f"{where}: only one assignment a line is allowed, of the form {_GRAMMAR}")
    match = _COMMENT.fullmatch(comments.get(statement.lineno, ""))
    if match is None:
        raise ChapterError(f"{where}: {target} needs a comment of the form {_GRAMMAR}")
    parameter = _with_rule(Parameter(target, default, match["meaning"], match["unit"].strip(), match["allowed"]), where)
    try:
        check(parameter, default)
    except ParameterError as error:
        raise ChapterError(f"{where}: the default breaks its own rule: {error}") from error
    return parameter


def _literal(node: ast.expr, where: str) -> Value:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        value = None
    if type(value) not in (bool, int, float, str):
        raise ChapterError(f"{where}: the value must be a literal number, string, True or False")
    return value


def _with_rule(parameter: Parameter, where: str) -> Parameter:
    allowed, fields = parameter.allowed, vars(parameter)
    if allowed == "any":
        return parameter
    if (match := _RANGE.fullmatch(allowed)) and type(parameter.default) in (int, float):
        low, high = float(match[1]), float(match[2])
        if low <= high:
            return Parameter(**fields | {"limits": (low, high)})
    if allowed.startswith("one of "):
        texts = [text.strip() for text in allowed.removeprefix("one of ").split(",")]
        try:
            return Parameter(**fields | {"choices": tuple(parse_value(parameter, text) for text in texts)})
        except ParameterError as error:
            raise ChapterError(f"{where}: {error}") from error
    raise ChapterError(
        f"{where}: [{parameter.unit}: {allowed}] does not suit {parameter.name}; write 'LOW to HIGH' for numbers, "
        "'one of a, b' or 'any'"
    )


def parse_value(parameter: Parameter, text: str) -> Value:
    """Return the value that a text denotes for this parameter; nothing is evaluated.

    Raises:
        ParameterError: the text is not of the parameter's type.
    """
    kind = type(parameter.default)
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int and re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        return int(text)
    if kind is float and re.fullmatch(_NUMBER, text) and math.isfinite(float(text)):
        return float(text)
    raise _refused(parameter, text, f"is not {_TYPE_WORDS[kind]}")


_TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number of at most 18 digits",
    float: "a finite number",
    str: "text",
}


def check(parameter: Parameter, value: Value) -> Value:
    """Return the value in the parameter's own type when type and allowed set admit it.

    Raises:
        ParameterError: wrong type, or outside the allowed set; says what is allowed.
    """
    kind = type(parameter.default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise _refused(parameter, value, f"is not {_TYPE_WORDS[kind]}")
    inside = parameter.limits is None or parameter.limits[0] <= value <= parameter.limits[1]
    if not inside or (parameter.choices is not None and value not in parameter.choices):
        raise _refused(parameter, value, "is outside what is allowed")
    if kind is str and not _is_utf8(value):
        raise _refused(parameter, value, "is not valid UTF-8 text")
    return value


def _is_utf8(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refused(parameter: Parameter, value: Value, reason: str) -> ParameterError:
    allowed = f"allowed: {parameter.allowed} ({parameter.unit}; {parameter.meaning})"
    return ParameterError(f"{parameter.name} = {short(value)} {reason}; {allowed}")


def short(value: Value, limit: int = 60) -> str:
    """Return a value as messages show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def resolve(parameters: Iterable[Parameter], assignments: Iterable[str], folder: Path) -> dict[str, Value]:
    """Return every parameter's value, with the user's assignments checked and put in place of the defaults.

    Args:
        parameters: what the chapter declares.
        assignments: texts `NAME=VALUE`; VALUE is a literal and is never evaluated.
        folder: where relative paths start.

    Raises:
        ParameterError: malformed, unknown or doubled name, wrong type, outside the allowed set, path that is not there.
    """
    declared = {parameter.name: parameter for parameter in parameters}
    given: dict[str, Value] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ParameterError(f"-p {short(assignment)} is not of the form NAME=VALUE")
        if name not in declared:
            raise ParameterError(_unknown(name, declared))
        if name in given:
            raise ParameterError(f"{name} is given twice; give it once")
        value = check(declared[name], parse_value(declared[name], text))
        given[name] = _existing_path(declared[name], value, folder) if declared[name].unit == "path" else value
    return {name: given.get(name, parameter.default) for name, parameter in declared.items()}


def _unknown(name: str, declared: dict[str, Parameter]) -> str:
    nearest = difflib.get_close_matches(name, declared, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"unknown parameter {short(name)}; {hint}allowed names: {', '.join(declared) or 'none'}"


def _existing_path(parameter: Parameter, value: str, folder: Path) -> str:
    if not value:
        return value
    path = (folder / Path(value).expanduser()).absolute()
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        where = short(str(path), 200)
        raise ParameterError(f"{parameter.name}: there is no {where}; give an existing path, or leave it out")
    return str(path)


def changed(parameters: Iterable[Parameter], values: dict[str, Value]) -> dict[str, Value]:
    """Return the values that differ from their defaults, in the order of the parameters cell."""
    return {p.name: values[p.name] for p in parameters if values[p.name] != p.default}
