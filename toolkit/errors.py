"""The errors users see, and the ends of a job that are no errors. Imports only the standard library."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
from collections.abc import Iterator
from typing import Any


class UserError(ValueError):
    """Bad input: shown as one line, exit code 2. Name the key or file, what is wrong, what is right."""


class JobError(RuntimeError):
    """The job itself failed (NaN loss, full disk): shown as one line, exit code 1."""


class LostProcess(JobError):
    """Another process of the job is gone or silent: said by every process that finds it, each on its own host."""


class Interrupted(BaseException):
    """A signal asked the job to stop; ``exit_code`` is 128 and its number: 130 for SIGINT, 143 for SIGTERM."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)  # alone, so that a worker's can be pickled
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"interrupted (exit code {self.exit_code})"


def is_full_disk(error: BaseException) -> bool:
    """Also where a library turns the OSError into one of its own, as safetensors does."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


@contextlib.contextmanager
def refusals_named() -> Iterator[None]:
    """What the file system refuses for a reason that lies with the name or the rights, as a UserError naming it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS or error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}") from error


def in_one_line(error: BaseException) -> UserError | JobError | None:
    """What to say of an error that ends a command: a file that the system refuses, memory; None for a bug."""
    if isinstance(error, (UserError, JobError)):
        return error
    if isinstance(error, MemoryError):
        return JobError(f"out of memory ({error}); ask for less")
    filename = getattr(error, "filename", None)
    return None if filename is None else UserError(f"{filename}: {getattr(error, 'strerror', '')}")


def is_out_of_memory(error: BaseException) -> bool:
    """Of the machine or of an accelerator: Python's error, numpy's, those of torch's allocators, and the linker's."""
    words = ("can't allocate memory", "failed to map segment from shared object")
    is_torchs = type(error).__name__ == "OutOfMemoryError" or any(one in str(error) for one in words)
    return isinstance(error, MemoryError) or is_torchs


def brief(said: object, most: int | None = 160) -> str:
    """What an error of somebody else's says in one line of at most ``most`` letters; its kind where it says nothing."""
    return " ".join(str(said).split())[:most] or type(said).__name__


def with_kind(error: BaseException, most: int | None = 160) -> str:
    """An error's kind and what it says, in one line: ``KeyError: 'name'``; of our own errors what they say alone."""
    said, kind = brief(error, most), type(error).__name__
    return said if said == kind or isinstance(error, (UserError, JobError)) else f"{kind}: {said}"


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, in its first line; the name of its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(word: str, options: Any) -> str:
    """``"did you mean 'x'? "`` or the empty string."""
    near = difflib.get_close_matches(word, list(options), n=1)
    return f"did you mean '{near[0]}'? " if near else ""


def few(words: list[str], most: int = 20) -> str:
    """A list in one line, shortened."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def bytes_text(size: float) -> str:
    """A number of bytes in the largest of GiB, MiB and KiB in which it is at least 1."""
    power = 3 if size >= 2**30 else 2 if size >= 2**20 else 1
    return f"{size / 1024**power:.1f} {'KMG'[power - 1]}iB"


def refuse_files(problems: list[str], total: int, key: str = "data.skip_bad") -> None:
    """Raise one UserError for all ``problems`` with files of a folder of ``total``; nothing where there are none."""
    hint = f"({key}=true leaves such files out)"
    if len(problems) == 1:
        raise UserError(f"{problems[0]} {hint}")
    if problems and len(problems) == total:
        raise UserError(f"none of {total} files can be used; the first: {problems[0]}")
    if problems:
        raise UserError(f"{len(problems)} of {total} files cannot be used {hint}: {few(problems, 10)}")
