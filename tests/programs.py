"""Programs of others that tests and benchmarks run."""

import re
import shutil
import subprocess


def version_of(program: str, option: str) -> str:
    """Return the version that a program prints when called with *option*; empty: it is not on PATH."""
    path = shutil.which(program)
    if path is None:
        return ""
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return found[0] if found else "unknown"
