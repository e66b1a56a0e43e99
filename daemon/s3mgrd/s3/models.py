"""botocore's data files, read once a process and kept small: `s3mgrd.s3.warm` has them read before a worker is forked.

The model of S3 and the list of endpoints are 1.5 MiB of JSON, of which botocore keeps 12 MiB of objects in every process: what a
parameter is for, in prose, and the endpoints of 400 services. Requests need neither.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from botocore.loaders import JSONFileLoader, Loader

SERVICES: Final = frozenset({"s3", "sts"})
"""Of these the list of endpoints is kept; whoever asks for another gets the names that its partition's pattern gives."""
_LONGEST_NAME: Final = 64


@functools.cache
def data_loader() -> Loader:
    """Return the loader of botocore's data files, which keeps what it has read.

    For clients of S3 only: whoever may make one of another service takes `whole_loader`.
    """
    return _builtin(Loader(file_loader=_SmallFileLoader()))


def whole_loader() -> Loader:
    """Return a new loader of all of botocore's data files."""
    return _builtin(Loader())


def _builtin(loader: Loader) -> Loader:
    loader.search_paths[:] = [Loader.BUILTIN_DATA_PATH]  # and not ~/.aws/models
    return loader


# botocore is untyped: its loader is a subclass of Any, and so is what a JSON file says.
class _SmallFileLoader(JSONFileLoader):  # type: ignore[misc]
    def _load_file(self, full_path: str, open_method: Callable[[str, str], BinaryIO]) -> Any:  # noqa: ANN401
        if not os.path.isfile(full_path):
            return None
        with open_method(full_path, "rb") as file:
            data = json.loads(file.read(), object_pairs_hook=_keep)
        if os.path.basename(full_path) == "endpoints.json":
            for partition in data["partitions"]:
                services = partition["services"]
                partition["services"] = {
                    name: services[name] for name in services.keys() & SERVICES
                }
        return data


def _keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON without its prose, and with one copy of each of the few words that such files are made of."""
    kept = dict(pairs)
    for name, value in pairs:
        if type(value) is not str:
            continue
        if name == "documentation":
            kept[name] = ""  # botocore looks for it
        elif len(value) <= _LONGEST_NAME:
            kept[name] = sys.intern(value)
    return kept
