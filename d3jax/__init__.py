"""d3jax: multi-domain click-through-rate prediction in JAX, with D3 as a plug-in.

What a user needs is here, as `__init__.pyi` lists it. A name is imported when it is first asked
for (Scientific Python's SPEC 1), so that `import d3jax` costs neither JAX nor time.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any


def _modules() -> dict[str, str]:
    """Return the module of each name that the stub imports."""
    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _modules()

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` and keep it."""
    if name == "__version__":
        value = _installed_version()
    elif name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    elif _MODULES[name] == __name__:  # a module, such as d3jax.nnx
        value = import_module(f"{__name__}.{name}")
    else:
        value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return what the front door gives, for an editor or a notebook to complete."""
    return __all__


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "unknown"
