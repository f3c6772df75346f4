"""What code may not do unseen: run a shell, evaluate text, or load objects that run code when they are read.

Names are followed through imports, so that `from os import system as run` is found. This keeps honest authors from a
mistake; it does not hold back a hostile notebook, which runs with the rights of whoever runs it.
"""

import ast
import builtins
import re

from casestudies_lib.runner.chapters import source_of
from casestudies_lib.runner.completeness import cell_name

_ALWAYS = {
    "eval": "evaluates text", "exec": "evaluates text", "compile": "evaluates text", "__import__": "imports by text",
    "os.system": "runs a shell", "os.popen": "runs a shell", "subprocess.getoutput": "runs a shell",
    "subprocess.getstatusoutput": "runs a shell", "torch.load": "unpickles", "joblib.load": "unpickles",
    "pandas.read_pickle": "unpickles", "yaml.load": "makes objects", "yaml.unsafe_load": "makes objects",
}  # fmt: skip
_MODULES = dict.fromkeys(("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"), "unpickles")
_INVISIBLE = re.compile("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")  # code that looks like other code
_IN_NOTEBOOKS = dict.fromkeys(("subprocess", "pty", "ctypes"), "starts programs")


def code_problems(text: str, *, notebook: bool = False) -> list[str]:
    """Return one line for each thing that Python code may not do.

    Args:
        text: the source of a module, or of a cell.
        notebook: whether the stricter rules of notebooks hold, where no program may be started.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a line for IPython's magic or for the shell is no Python
        return ["holds a line that is no Python: a shell or magic line, or a mistake"]
    found = [f"holds the invisible character U+{ord(character):04X}" for character in _INVISIBLE.findall(text)]
    names = _imported_names(tree)
    modules = _MODULES | (_IN_NOTEBOOKS if notebook else {})
    found += [f"line {line}: {name} {modules[name.split('.')[0]]}" for line, name in _imports(tree)
             if name.split(".")[0] in modules]  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = _dotted(node, names)
            if name in _ALWAYS:
                found.append(f"line {node.lineno}: {name} {_ALWAYS[name]}")
            if notebook and name.rpartition(".")[2] == "get_ipython":
                found.append(f"line {node.lineno}: get_ipython may run anything")
        if isinstance(node, ast.Call):
            found += [f"line {node.lineno}: {problem}" for problem in _argument_problems(node)]
    return list(dict.fromkeys(found))


def _imports(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """Return what each name that an import binds stands for, in full."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return "?"


def _argument_problems(call: ast.Call) -> list[str]:
    forbidden = {"shell": "shell= may run a shell", "allow_pickle": "allow_pickle= may unpickle"}
    return [
        forbidden[keyword.arg]
        for keyword in call.keywords
        if keyword.arg in forbidden and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]


def notebook_code_problems(notebook: dict) -> list[str]:
    """Return one line for each code cell that runs a shell, a magic, or anything else that a chapter may not."""
    found, known = [], set(dir(builtins))
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        source = source_of(cell)
        problems = code_problems(source, notebook=True) or _automatic_magic(source, known)
        found += [f"{cell_name(notebook, index)} {problem}" for problem in problems]
        known |= _bound_names(source)
    return found


def _automatic_magic(source: str, known: set[str]) -> list[str]:
    """IPython runs a lone line `ls` or `cd x` as a command where no variable has that name."""
    lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1:
        return []
    names = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    first = min(names, key=lambda name: (name.lineno, name.col_offset), default=None)
    if first is None or not isinstance(first.ctx, ast.Load) or first.id in known | _bound_names(source):
        return []
    return [f"starts with {first.id}, which no cell before it defines; IPython may take it for a command"]


def _bound_names(source: str) -> set[str]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return set()
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    aliases = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    return bound | {alias.asname or alias.name.split(".")[0] for alias in aliases}
