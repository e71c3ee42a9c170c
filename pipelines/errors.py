"""Why a command ends without publishing, and the exit code schedulers see."""

from __future__ import annotations


class CommandError(Exception):
    """A refusal whose message is meant for the operator."""

    exit_code = 1


class UsageError(CommandError):
    """Bad usage or configuration."""

    exit_code = 2


class InputRefusedError(CommandError):
    """The catalog was refused: too many rejects, damaged files, nothing usable."""

    exit_code = 3


class GateRefusedError(CommandError):
    """A quality gate refused to publish."""

    exit_code = 4


class MismatchError(CommandError):
    """The run does not fit what is published: encoder, template, tokenizer or layout."""

    exit_code = 5


class ConflictError(CommandError):
    """Another run published first, or is working on the same generation."""

    exit_code = 1
