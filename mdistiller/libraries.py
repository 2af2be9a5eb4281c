"""Libraries that are installed as extras: imported where they are used, with one line that says what to install."""

import importlib
from pathlib import Path
from types import ModuleType

from mdistiller.errors import UserError


def import_extra(module: str, purpose: str, extra: str) -> ModuleType:
    """The module, or a UserError: `purpose` (what is to be done) needs it, and `extra` of this package brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0].replace("_", "-")
        raise UserError(f"{purpose} needs {library}: pip install 'mdistiller-ea[{extra}]'") from None


def import_transformers() -> ModuleType:
    """Hugging Face transformers, without its progress bars."""
    transformers = import_extra("transformers", "a language model", "llm")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # hints about other libraries belong to no run's log
    return transformers


def source_of(name: str) -> tuple[str, dict]:
    """What `from_pretrained` of transformers is given for a name: a folder or a hub name, and the keywords of a GGUF
    file."""
    path = Path(name)
    return (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (name, {})


def first_line(error: Exception) -> str:
    """Kind and first line of an exception of somebody else's code."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
