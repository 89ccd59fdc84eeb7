# SPDX-License-Identifier: GPL-2.0-or-later
"""Import everything that runs in an initrd, and print which files were loaded.

Runs in the session, while an initrd is made.  Nobody imports this module: `kjump.initrd.files`
starts it in an interpreter of its own (``python3 -IS``), because what it prints is what that
interpreter has loaded.  For the same reason it imports little itself.  It changes nothing on the
machine.

The argument is JSON: folders to search before and after the interpreter's own, packages to import
with all their modules, modules to import if they are there, and modules to leave out.  The output
is JSON, too: the interpreter's real path, its search path, and the source and the byte code (or
null) of each module.
"""

import ast
import importlib
import json
import os
import site  # noqa: F401  (the initrd needs it, but with -S Python does not import it at the start)
import sys
from collections.abc import Iterator


def imported_in_functions(file: str) -> Iterator[str]:
    """Names of the modules that a function of this source file imports when it runs."""
    with open(file, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    yield node.module


def import_packages(names: list[str]) -> None:
    """Import these packages with all modules directly in them."""
    for name in names:
        for folder in getattr(importlib.import_module(name), "__path__", ()):
            for found in sorted(os.listdir(folder)):
                if found.endswith(".py") and not found.startswith("__"):
                    importlib.import_module(f"{name}.{found[:-3]}")


def import_lazy(names: list[str]) -> None:
    """Import these modules, and those that our functions import; not every system has them all."""
    wanted = [*names]
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "kjump" and module.__file__:
            wanted += imported_in_functions(module.__file__)
    for name in wanted:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            pass


def loaded() -> list[tuple[str, str | None]]:
    """Source and byte code of each module that was loaded from a file."""
    found = []
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        # Frozen modules are inside the binary; but Python finds its library by looking for os.
        frozen = getattr(getattr(module, "__spec__", None), "origin", "") == "frozen"
        if path and name != "__main__" and (name == "os" or not frozen):
            found.append((path, getattr(module, "__cached__", None)))
    return found


def main() -> None:
    before, after, packages, lazy, left_out = json.loads(sys.argv[1])
    sys.path[:0] = before
    sys.path += after
    for name in left_out:
        sys.modules[name] = None  # type: ignore[assignment]  # import then raises ImportError
    import_packages(packages)
    import_lazy(lazy)
    print(json.dumps([os.path.realpath(sys.executable), sys.path, loaded()]))


if __name__ == "__main__":
    main()
