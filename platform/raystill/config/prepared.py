"""What `teacher.*.data.download` means: which prepared dataset stands in for a teacher's own generations."""

from __future__ import annotations

from dataclasses import dataclass

from raystill.config.teacher import TeacherSection
from raystill.config.teacher_fields import DownloadSection

# Published by the TAS project: prompts for Python functions, answered by an open and by a closed teacher.
_DATASET = "bunyaminergen/Stable-Code-Python-SFT"
_REVISION_OF_SIZE = {"16k": "v3", "32k": "v5", "64k": "v7"}
_SUFFIX_OF_TEACHER = {"open": "GoogleDocString", "closed": "NumpyDocString"}


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset: `name` on the hub at `revision`, or a local `path`. `label` tags its rows."""

    config_key: str
    name: str
    revision: str
    path: str | None

    @property
    def label(self) -> str:
        return self.path or f"{self.name}@{self.revision}"


def find_prepared(teacher: TeacherSection) -> Prepared | None:
    """The prepared dataset of the teacher that would answer, None where it shall generate."""
    kind = "closed" if teacher.closed is not None else "open"
    section = teacher.closed or teacher.open
    if section is None:
        return None
    download: DownloadSection = section.data.download
    key = f"teacher.{kind}.data.download"
    if download.path is not None:
        return Prepared(key, "", "", download.path)
    if download.size is None:
        return None
    return Prepared(key, _DATASET, f"{_REVISION_OF_SIZE[download.size]}-{_SUFFIX_OF_TEACHER[kind]}", None)
