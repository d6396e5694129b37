"""Lists the data licences that allow redistribution of a catalogue, such as pushing it to the hub beside a model.

`trl-rec prepare` records the licence that is given by `--license`, or else the known licence of the data format, if
any. Only the licences that are listed here count as allowing redistribution. With any other licence, or without a
licence, the catalogue is pushed only if the option `include_catalog` of the push is set.
"""

from __future__ import annotations

import re


# Licence identifiers of the Hugging Face hub. Licences that forbid derivatives (-nd) are not listed, because a
# prepared catalogue is a derivative.
REDISTRIBUTABLE = frozenset(
    {
        "afl-3.0",
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "cdla-sharing-1.0",
        "etalab-2.0",
        "mit",
        "odbl",
        "odc-by",
        "odc-by-1.0",
        "pddl",
        "unlicense",
    }
)


def allows_redistribution(license: str | None) -> bool:
    """Returns whether a recorded licence, such as `"cc-by-4.0"` or `"CC BY 4.0"`, allows redistribution."""
    if license is None:
        return False
    return re.sub(r"[\s_-]+", "-", license.strip().lower()) in REDISTRIBUTABLE
