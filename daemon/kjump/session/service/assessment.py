# SPDX-License-Identifier: GPL-2.0-or-later
"""What was found out about the machine: can it hibernate, and what is logind to offer?

Runs in the session.  Nothing here reads the machine by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kjump.errors import (
    ForeignKexecImage,
    KjumpError,
    NoWindow,
    TargetTooSmall,
    TooLittleMemory,
)
from kjump.session.checks import readiness
from kjump.session.checks.facts import Facts
from kjump.settings import Settings

PASSING = (TooLittleMemory, NoWindow, ForeignKexecImage, TargetTooSmall)
"""Reasons that come and go unnoticed: logind goes on to offer hibernation in spite of them."""


@dataclass(frozen=True)
class Assessment:
    """The machine as it was read last."""

    facts: Facts | None
    """None: it could not be read; the only reason says why."""
    reasons: Sequence[KjumpError]
    """Why it cannot hibernate, the most fundamental first."""
    offered: bool = True
    """Whether logind offers hibernation."""
    looked_back: bool = False
    """Whether an earlier boot's image was looked at: then the history may have changed."""
    unloaded: bool = False
    """Whether a warm helper was unloaded because it no longer fits the machine."""

    @property
    def availability(self) -> str:
        """What CanHibernate answers an authorized caller."""
        return readiness.availability(self.reasons)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The reasons as (name of the error, sentence)."""
        return [(reason.name, reason.sentence) for reason in self.reasons]


def is_possible(reasons: Sequence[KjumpError]) -> bool:
    """Whether logind is to offer hibernation, as far as kjump is concerned."""
    return all(isinstance(reason, PASSING) for reason in reasons)


@dataclass(frozen=True)
class LogindActions:
    """What is done to the machine so that logind offers hibernation, or does not."""

    offer: Callable[[bool, Settings], bool] = lambda possible, settings: True
    """Offer hibernation or not, by whether a jump is possible; whether it is offered now."""
    set_resume_device: Callable[[Facts], None] = lambda facts: None
    """Name a resume device to the kernel if logind insists on one."""
