# SPDX-License-Identifier: GPL-2.0-or-later
"""``kjumpctl doctor``: all that can be checked, by kjumpd and from here, and a jump as a dry run.

Runs in the session, as any user.  kjumpd looks at the machine (`kjump.session.checks.doctor`); what
is looked at here is whether others see kjump: systemd, logind, the boot initrd.  Where kjumpd does
not answer, root's kjumpctl looks at the machine itself, and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kjump import VERSION
from kjump import settings as configuration
from kjump.cli import dropins, show
from kjump.cli.client import Client
from kjump.errors import BadConfiguration, KjumpError, NoBootResume, ServiceUnreachable, table
from kjump.machine.ranges import PAGE
from kjump.session import kernels
from kjump.session.checks import doctor
from kjump.session.checks.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from kjump.session.checks.facts import read_facts

LISTERS = ("lsinitramfs", "lsinitrd")
"""initramfs-tools' and dracut's way to tell what is in a boot initrd."""
PART = "kjump-resume"
"""Name of what must be in it."""

# -- deciding --------------------------------------------------------------------------------------


def of_settings(settings: configuration.Settings, properties: Mapping[str, Any]) -> list[Finding]:
    """Lines of the configuration that are not used, and whether kjumpd uses what is there now."""
    name = "configuration"
    out = [
        doctor.warning(name, BadConfiguration(f"{complaint}.")) for complaint in settings.warnings
    ]
    spec = (properties.get("Target") or {}).get("spec")
    if spec is not None and spec != settings.target.path:
        out.append(
            Finding(
                name,
                WARNING,
                "The configuration has changed since kjumpd read it.",
                BadConfiguration.__name__,
                "Have it read again with: kjumpctl reload.",
            )
        )
    return out or [Finding(name, OK, "Every line of the configuration is used.")]


def of_service(properties: Mapping[str, Any]) -> Finding:
    """Whether kjumpd is this kjumpctl's."""
    version = str(properties.get("Version", ""))
    if version != VERSION:
        return Finding(
            "service",
            WARNING,
            f"kjumpd {version} runs, and {VERSION} is installed.",
            advice="Restart it: systemctl restart kjumpd.",
        )
    return Finding("service", OK, f"kjumpd {version} answers.")


def of_drop_ins(*, enabled: bool) -> Finding:
    """Whether systemctl hibernate leads here."""
    if enabled:
        return Finding("enabled", OK, "systemctl hibernate leads to kjump.")
    return Finding(
        "enabled",
        WARNING,
        "systemctl hibernate does not lead to kjump.",
        advice="Lead it here with: kjumpctl enable.",
    )


def of_logind(answer: str, *, enabled: bool) -> Finding:
    """What desktops hear."""
    name = "logind"
    if not enabled:
        return Finding(name, SKIPPED, "Not asked: kjump is not enabled.")
    if answer in ("yes", "challenge"):
        return Finding(name, OK, f"logind offers hibernation ({answer}).")
    return Finding(
        name,
        WARNING,
        f"logind does not offer hibernation: {answer}.",
        advice="It reads its environment when it starts: restart the machine, or logind; see"
        " kjumpd(8).",
    )


def of_last_cycle(report: Mapping[str, Any]) -> Finding:
    """How the last one went."""
    name = "last-cycle"
    if not report:
        return Finding(name, OK, "There was none yet.")
    when = show.moment(report.get("finished"))
    if report.get("result") == "failed":
        return Finding(
            name,
            WARNING,
            f"It failed on {when}: {report.get('what', '')}",
            str(report.get("error", "")),
            str(report.get("todo", "")),
        )
    return Finding(name, OK, f"It went well on {when}.")


def of_initrd(release: str, path: str, listing: str | None) -> Finding:
    """Whether kjump's part is in the boot initrd.  ``listing``: names of the files in it; None
    where they could not be listed."""
    name = "boot-initrd"
    if listing is None:
        return Finding(
            name, SKIPPED, f"Not looked at: {path or 'no initrd was found'}.", advice="Ask as root."
        )
    if PART in listing:
        return Finding(name, OK, f"{path} has kjump's part in it.")
    return doctor.failed(
        name, NoBootResume(f"{path}, of the kernel that boots next, has no part of kjump in it.")
    )


def of_dry_run(report: Mapping[str, Any]) -> Finding:
    """How a dry run went that came back."""
    seconds = duration(report)
    pages = (report.get("pages") or {}).get("data")
    saved = f"  {show.size(pages * PAGE)} would be saved now." if pages else ""
    return Finding("dry-run", OK, f"To the helper and back in {seconds:.1f} s.{saved}")


def duration(report: Mapping[str, Any]) -> float:
    """Seconds from before the jump until after it.  The session's monotonic clock stood still, and
    its wall clock was set to a whole second; so the helper's own times are looked at, too."""
    wall = float((report.get("wall") or {}).get("jump", 0.0))
    phases = report.get("phases") or {}
    ours = set(report.get("wall") or {}) - {"jump"}
    return max(wall, sum(float(s) for name, s in phases.items() if name not in ours))


def exit_code(findings: list[Finding]) -> int:
    """0, or that of the first failure."""
    for finding in findings:
        if finding.state == FAILED:
            cls = table().get(finding.error)
            return cls.exit_code if cls else 1
    return 0


def text(findings: list[Finding], *, colour: bool = False) -> str:
    """All findings for a person."""
    colours = {OK: show.GREEN, WARNING: show.YELLOW, FAILED: show.RED, SKIPPED: ""}
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        shade = colours.get(finding.state, "")
        state = show.paint(f"{finding.state:7}", shade, on=colour and bool(shade))
        lines.append(f"{state}  {finding.name:{width}}  {finding.sentence}")
        if finding.state in (WARNING, FAILED):
            name = f" [{finding.error}]" if finding.error else ""
            if finding.advice or name:
                lines.append(f"{'':7}  {'':{width}}  -> {finding.advice}{name}")
    count = {s: sum(f.state == s for f in findings) for s in (FAILED, WARNING)}
    lines.append("")
    if count[FAILED]:
        lines.append(f"{count[FAILED]} failed, {count[WARNING]} to think about.")
    elif count[WARNING]:
        lines.append(f"Hibernation works as far as was tried; {count[WARNING]} to think about.")
    else:
        lines.append("All is well.")
    return "\n".join(lines)


def document(findings: list[Finding], trial: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "result": doctor.worst(findings),
        "checks": [
            dict(zip(("name", "state", "error", "sentence", "advice"), f.texts(), strict=True))
            for f in findings
        ],
        "dry_run": dict(trial) if trial else None,
    }


# -- looking ---------------------------------------------------------------------------------------


def boot_initrd(release: str) -> str:
    """Path of a kernel's boot initrd, by Debian's or Fedora's name; empty where there is none."""
    names = (f"/boot/initrd.img-{release}", f"/boot/initramfs-{release}.img")
    return next((name for name in names if Path(name).exists()), "")


def listing(path: str) -> str | None:
    """Names of the files in a boot initrd, or None."""
    program = next((found for found in map(shutil.which, LISTERS) if found), None)
    if not path or program is None or not os.access(path, os.R_OK):
        return None
    done = subprocess.run(
        [program, path], check=False, capture_output=True, text=True, errors="replace"
    )
    return done.stdout if not done.returncode else None


def look(client: Callable[[], Client] = Client, root: Path = Path("/")) -> list[Finding]:
    """All findings but the jump.  Never raises for what it finds."""
    settings = configuration.load(root)
    out: list[Finding] = []
    properties: dict[str, Any] = {}
    answer = ""
    try:
        bus = client()
        answer = bus.logind_can_hibernate()
        properties = bus.properties()
        out.append(of_service(properties))
        out += of_settings(settings, properties)
        newer = doctor.newer_modules(settings, os.uname().release)
        for name, state, error, said, advice in bus.check():
            found = Finding(name, state, said, error, advice)
            out.append(newer if newer and (name, state) == (newer.name, OK) else found)
    except ServiceUnreachable as error:
        out.append(doctor.failed("service", error))
        out += of_settings(settings, {})
        out += without_service(settings)
    releases = kernels.installed(root / "boot", root / "lib/modules")
    path = boot_initrd(releases[-1]) if releases else ""
    out.append(of_initrd(releases[-1] if releases else "", path, listing(path)))
    try:
        enabled = dropins.are_enabled(root)
    except KjumpError as error:
        out.append(doctor.failed("enabled", error))
    else:
        out += [of_drop_ins(enabled=enabled), of_logind(answer, enabled=enabled)]
    if properties:
        out.append(of_last_cycle(properties.get("LastCycle") or {}))
    return out


def without_service(settings: configuration.Settings) -> list[Finding]:
    """The machine looked at from here, where kjumpd does not answer."""
    if os.geteuid():
        return [
            Finding(
                "machine", SKIPPED, "Not looked at: kjumpd does not answer.", advice="Ask as root."
            )
        ]

    facts = read_facts(settings)
    return doctor.examine(facts, doctor.read(settings, facts))
