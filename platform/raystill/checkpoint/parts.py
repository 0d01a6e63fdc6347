"""The tensor files of a checkpoint: one per group, or one per group and worker where workers hold parts.

    model.safetensors                                                        one part
    model-00001-of-00002.safetensors  model-00002-of-00002.safetensors       two

A tensor whose name is in several files is cut along its first dimension, in the order of the files; a tensor
that is whole is in the first file alone. So a reader needs nothing but the files, whatever number of workers
it has itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import SafetensorError, safe_open

from raystill.errors import DataError
from raystill.run.failpoint import failpoint

if TYPE_CHECKING:
    import torch

TensorGroups: TypeAlias = "Mapping[str, Mapping[str, torch.Tensor]]"


def part_name(group: str, part: int, num_parts: int) -> str:
    """File name of one part of a group; `part` counts from 0."""
    if num_parts == 1:
        return f"{group}.safetensors"
    return f"{group}-{part + 1:05d}-of-{num_parts:05d}.safetensors"


def part_names(group: str, num_parts: int) -> list[str]:
    """File names of a group, in the order in which cut tensors go together."""
    return [part_name(group, part, num_parts) for part in range(num_parts)]


def write_part(directory: Path, tensors: TensorGroups, part: int, num_parts: int) -> list[Path]:
    """Write one part of every group into `directory`; returns the files, which are not flushed yet.

    Raises DataError for two names of one tensor: save a tied tensor once.
    """
    from safetensors.torch import save_file

    written = []
    for group, named in tensors.items():
        file = directory / part_name(group, part, num_parts)
        save_file({name: _own(tensor) for name, tensor in named.items()}, file)
        failpoint("checkpoint:group_written")
        written.append(file)
    return written


def refuse_shared(group: str, named: Mapping[str, torch.Tensor]) -> None:
    """Raise DataError where two names of a group are the same tensor."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in named.items():
        if tensor.numel() == 0 or tensor.device.type == "meta":
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if place in seen:
            raise DataError(
                f"{seen[place]!r} and {name!r} are the same tensor",
                where=f"checkpoint group {group}",
                fix="save a tied tensor once, under one name",
            )
        seen[place] = name


class GroupReader:
    """The tensors of one group, each read and put together when it is asked for.

    What it gives is in memory of its own: a tensor that still lay in the file would keep the file's space on
    the disk taken after the checkpoint is deleted.
    """

    def __init__(self, streams: list[Any]) -> None:
        """`streams` are the group's files as `safetensors.safe_open` gives them, first part first."""
        self._streams: dict[str, list[Any]] = {}
        for stream in streams:
            for name in stream.keys():  # noqa: SIM118
                self._streams.setdefault(name, []).append(stream)

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._streams)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a whole tensor; reads no more than the headers. Raises DataError as `tensor` does."""
        shapes = [tuple(stream.get_slice(name).get_shape()) for stream in self._streams[name]]
        if len(shapes) == 1:
            return shapes[0]
        if not all(shapes) or len({shape[1:] for shape in shapes}) > 1:
            raise _unfit(name)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def tensor(self, name: str) -> torch.Tensor:
        """One whole tensor, on the CPU. Raises DataError where its parts don't fit together."""
        import torch

        parts: list[torch.Tensor] = [stream.get_tensor(name) for stream in self._streams[name]]
        if len(parts) == 1:
            return parts[0].clone()
        try:
            return torch.cat(parts)
        except RuntimeError as error:
            raise _unfit(name) from error

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor that has a dimension at least, on the CPU: [stop - start, ...].

        Of the files only these rows are read. Raises DataError where the parts don't fit together.
        """
        import torch

        self.shape(name)
        found: list[torch.Tensor] = []
        begin = 0
        for stream in self._streams[name]:
            part = stream.get_slice(name)
            length = part.get_shape()[0]
            first, last = max(start - begin, 0), min(stop - begin, length)
            if first < last:
                found.append(part[first:last])
            begin += length
        if not found:
            return self._streams[name][0].get_slice(name)[0:0].clone()  # type: ignore[no-any-return]
        return torch.cat(found) if len(found) > 1 else found[0].clone()


@contextmanager
def open_group(directory: Path, group: str, num_parts: int) -> Iterator[GroupReader]:
    """Open the files of a group for reading. Raises OSError or SafetensorError for one that can't be."""
    with ExitStack() as stack:
        yield GroupReader(
            [
                stack.enter_context(safe_open(directory / name, framework="pt", device="cpu"))
                for name in part_names(group, num_parts)
            ]
        )


@contextmanager
def unreadable_groups(directory: Path) -> Iterator[None]:
    """Turn what a file that is not of safetensors raises, while it is opened or read, into a DataError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"the checkpoint can't be used: it is not made of safetensors files ({error})",
            where=str(directory),
            fix="resume from an older checkpoint, or restore the files from a copy",
        ) from error


def _unfit(name: str) -> DataError:
    return DataError(f"the parts of {name!r} don't fit together", where="checkpoint")


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, contiguous, and alone in its storage, as safetensors wants it."""
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone()
