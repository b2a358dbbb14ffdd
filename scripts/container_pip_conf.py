"""Prints a pip.conf for a container: this machine's index, proxy and time-out, from its files and environment alike.

    python3 -m pip config list | python3 scripts/container_pip_conf.py CA_FILE >pip.conf

CA_FILE is where the container finds the certificates to trust. What names a folder of this machine is left out.
"""

from __future__ import annotations

import ast
import configparser
import sys
from collections.abc import Iterable

CARRIED = {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries"}


def container_settings(listing: Iterable[str], *, ca_file: str) -> configparser.ConfigParser:
    """The settings of `pip config list` (`origin.name='value'` a line) that hold inside a container."""
    settings = configparser.ConfigParser(interpolation=None)
    settings["global"] = {"cert": ca_file}
    # Environment variables win over files in pip, so they are read last.
    for line in sorted(listing, key=lambda line: line.startswith(":env:")):
        key, _, value = line.strip().partition("=")
        origin, _, name = key.rpartition(".")
        remote = [word for word in str(ast.literal_eval(value)).split() if not word.startswith(("file:", "/", "."))]
        if origin in ("global", ":env:") and name in CARRIED and remote:
            settings["global"][name] = "\n".join(remote)
    return settings


if __name__ == "__main__":
    container_settings(sys.stdin, ca_file=sys.argv[1]).write(sys.stdout)
