"""Imports of optional libraries (extras of the package), with an error of one line that says what to install."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from mdistiller.errors import UserError


def import_extra(module: str, purpose: str, extra: str) -> ModuleType:
    """The imported module. If it is missing, raises UserError: `purpose` needs it, `extra` of this package has it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0].replace("_", "-")
        raise UserError(f"{purpose} needs {library}: pip install 'mdistiller-ea[{extra}]'") from None


def check_installed(module: str, purpose: str) -> Path:
    """Path of the main file of a library that this package depends on, without importing it.

    Raises UserError when it is missing, as in a broken installation: `purpose` needs it.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        library = {"sklearn": "scikit-learn"}.get(module, module)
        raise UserError(f"{purpose} needs {library}, which is missing or incomplete here: pip install {library}")
    return Path(found.origin)


def import_transformers() -> ModuleType:
    """Hugging Face transformers, without its progress bars."""
    transformers = import_extra("transformers", "a language model", "llm")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # hints about other libraries do not belong in a log
    return transformers


def source_of(name: str) -> tuple[str, dict]:
    """Arguments for `from_pretrained` of transformers: a folder or a hub name, and keywords, also for a GGUF file.

    Python code of such a folder is never run; without this keyword, transformers asks the user in the terminal.
    """
    path, keywords = Path(name), {"trust_remote_code": False}
    return (str(path.parent), {**keywords, "gguf_file": path.name}) if path.suffix == ".gguf" else (name, keywords)
