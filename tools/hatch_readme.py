"""Makes of README.md what a package index shows of it. hatchling calls this when it builds
(pyproject.toml).

An index has the README alone, so links to other files of the project lead nowhere there. In a
distribution's metadata they lead to `files`, the address below which pyproject.toml says that the
project's files can be read. As long as it says none, there is the file's name instead of a link: the
source distribution has the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

#: The text of a link to a file of the project, the file, and the title in it.
LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)")


def for_index(text: str, files: str) -> str:
    """Return a README whose links lead somewhere where its project's files aren't beside it."""
    return LINK.sub(rf"[\1]({files}\2\3)" if files else r"\1 (`\2`)", text)


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description of the distribution. Raises OSError."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = for_index(text, self.config["files"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
