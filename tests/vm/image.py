# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the disk of a test guest: Debian 13 or another release, a kernel that can kexec-jump, a
stock one, and kjump.

Three layers, each cached under a hash of all that decides its content: the base system (slow,
rarely changes), the kernels on top of it, and the disk with the kjump package.  A disk is never
written to once it is there; guests run on qcow2 overlays of it.

Nothing is downloaded but Debian packages, from where this machine's own apt gets them.  Needs root
(mounts in a namespace of its own), no loop devices.

usage: python3 -m tests.vm.image [--deb kjump.deb] [--swap | --more KIND] [--suite NAME]
           --kernel linux-image.deb
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from .cache import KEPT_BASES, KEPT_IMAGES, KEPT_SNAPSHOTS, cache_dir, digest, log, prune, run
from .contents import (
    DESKTOPS,
    FILES,
    GRUB_CFG,
    GRUB_MODULES,
    GUEST_PROGRAMS,
    INITRAMFS_CONF,
    MASKED,
    MORE,
    PACKAGES,
    PLASMA,
    PLASMA_PLUGIN,
    STOCK_KERNEL,
    SUITE,
    SWAP_UUID,
    UID,
    UNREAD,
    UNSTABLE,
    USER,
)
from .grub import install_grub

HERE = Path(__file__).parent
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

MIB = 1 << 20
ROOT_SIZE = 4096 * MIB  # sparse: what is free costs nothing
TARGET_SIZE = 9216 * MIB  # of incompressible memory
SMALL_SIZE = 32 * MIB  # a second target, too small for any image
SWAP_SIZE = 4096 * MIB  # a swap area, not in /etc/fstab
SPARE_SIZE = 3072 * MIB  # empty, for a file system of the test's choice


@dataclass(frozen=True)
class Image:
    """A guest disk; offsets and sizes in bytes. `kernels` names the releases by variant."""

    path: Path
    target_offset: int
    target_size: int
    kernels: dict[str, str]

    def save(self) -> None:
        text = json.dumps({**asdict(self), "path": self.path.name})
        self.path.with_suffix(".json").write_text(text)

    @classmethod
    def load(cls, path: Path) -> Image:
        fields = json.loads(path.with_suffix(".json").read_text())
        return cls(**{**fields, "path": path})


def sources(suite: str = SUITE) -> list[str]:
    """Lines of sources.list for a suite, on the servers that this machine's apt uses."""
    targets = run("apt-get", "indextargets", "--format", "$(SITE) $(REPO_URI) $(SUITE)")
    found: dict[str, None] = {}
    for line in targets.splitlines():
        _, uri, ours = line.split()
        if ours.endswith("-security"):
            if suite not in UNSTABLE:
                found[f"deb {uri} {suite}-security main"] = None
        elif re.search(r"/debian/?$", uri) and "-" not in ours:
            found[f"deb {uri} {suite} main"] = None
    if not found:
        raise SystemExit("apt has no Debian archive configured here: run apt-get update first")
    return list(found)


def apt_options() -> list[str]:
    """What this machine's apt needs to reach and accept its archive (proxies, a wrong clock)."""
    wanted = re.compile(r"Acquire::(Check-|Retries|(http|https)::(Proxy|Timeout))")
    lines = run("apt-config", "dump").splitlines()
    return [f"--aptopt={line.rstrip(';')}" for line in lines if wanted.match(line)]


def dependencies(deb: Path) -> list[str]:
    """The packages that `deb` depends on; the first of alternatives."""
    field = run("dpkg-deb", "--field", deb, "Depends")
    names = (re.split(r"[\s|(:]", item.strip())[0] for item in field.split(","))
    return sorted(name for name in names if name)


def in_root(root: Path, script: str) -> None:
    """Run a shell script in the guest's file system, as an installation would be run."""
    mounts = (
        'set -e; mount -t proc proc "$1/proc"; mount -t sysfs sysfs "$1/sys"\n'
        'mount --bind /dev "$1/dev"; mount -t tmpfs tmpfs "$1/run"; mount -t tmpfs tmpfs "$1/tmp"\n'
        'exec chroot "$1" env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive '
        'PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -ec "$2"'
    )
    output = run("unshare", "--mount", "--pid", "--fork", "sh", "-c", mounts, "-", root, script)
    log(re.sub(r"^", "  | ", output.strip(), flags=re.MULTILINE))


def place(root: Path, deb: Path) -> str:
    """Copy a package into the guest; the name it has there."""
    name = f"/var/cache/{deb.name}"
    shutil.copy(deb, root / name[1:])
    return name


def pack(root: Path, archive: Path) -> None:
    part = archive.with_suffix(".part")
    run(
        "tar",
        "--create",
        "--file",
        part,
        "--use-compress-program=zstd -1 -T0",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--one-file-system",
        "--directory",
        root,
        ".",
    )
    part.rename(archive)


def unpack(archive: Path, root: Path) -> None:
    run(
        "tar",
        "--extract",
        "--file",
        archive,
        "--use-compress-program=zstd -d",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--same-owner",
        "--preserve-permissions",
        "--directory",
        root,
    )


def build_base(root: Path, packages: list[str], suite: str = SUITE) -> None:
    # The stock kernel's initrd is made here too, so how to make it must be there first.
    conf = f'"$1"{INITRAMFS_CONF}'
    early = f'mkdir -p "$(dirname {conf})"; printf %s "{FILES[INITRAMFS_CONF]}" >{conf}'
    # mmdebstrap mounts /proc, /sys and the host's /dev/shm below the root.  In a mount namespace of
    # its own nothing is left mounted when it is killed, and no cleaning up reaches them.
    run(
        "unshare",
        "--mount",
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(packages)}",
        *apt_options(),
        f"--keyring={KEYRING}",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNREAD),
        f"--essential-hook={early}",
        suite,
        root,
        *sources(suite),
    )


def take_plasma(root: Path, suite: str) -> None:
    """Put Plasma's plugin for sessions into the guest, from the package of the same version as the
    library that is installed there."""
    from .suites import alone

    package, library = PLASMA
    query = ("dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", "--showformat=${Version}")
    with tempfile.TemporaryDirectory() as scratch:
        files = alone(suite, f"{package}={run(*query, library)}", Path(scratch))
        shutil.copytree(files / PLASMA_PLUGIN, root / PLASMA_PLUGIN)


def build_kernels(root: Path, kernel: Path) -> None:
    deb = place(root, kernel)
    in_root(root, f"dpkg --install {deb}; rm {deb}")


def build_system(root: Path, deb: Path | None, files: dict[str, str]) -> None:
    """Make a guest of the bare system with these files, then install kjump as a user would."""
    in_root(root, f"useradd --create-home --uid {UID} --shell /bin/bash {USER}; passwd -d root")
    for name, text in files.items():
        path = root / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    helpers = root / "usr/local/lib/kjtest"
    helpers.mkdir(parents=True)
    for name in GUEST_PROGRAMS:
        shutil.copy(HERE / name, helpers)
    in_root(
        root,
        f"chown -R {USER}: /home/{USER}; systemctl enable kjtest-agent.service\n"
        f"systemctl mask {MASKED}",
    )
    if deb:
        name = place(root, deb)
        in_root(
            root,
            f"dpkg --install {name}; rm {name}\n"
            "if command -v kjumpctl >/dev/null; then kjumpctl enable; fi",
        )
    # Else the first boot thinks that /usr was updated and rebuilds caches.
    for name in ("etc/.updated", "var/.updated"):
        (root / name).touch()


def use_swap(root: Path) -> None:
    """Make the guest ready for the kernel's own hibernation: swap in use, and a boot initrd that
    resumes from it, with either compressor."""
    release = releases(root)["kjump"]
    in_root(
        root,
        f"echo 'UUID={SWAP_UUID} none swap defaults 0 0' >>/etc/fstab\n"
        f"sed -i 's/^RESUME=.*/RESUME=UUID={SWAP_UUID}/' {INITRAMFS_CONF}\n"
        "printf 'lz4\\nlz4_compress\\nlzo\\n' >>/etc/initramfs-tools/modules\n"
        f"update-initramfs -u -k {release}",
    )


def releases(root: Path) -> dict[str, str]:
    """Release of each kernel variant that is installed."""
    found = sorted(path.name.removeprefix("vmlinuz-") for path in (root / "boot").glob("vmlinuz-*"))
    stock = [name for name in found if name.endswith("-amd64")]
    kjump = [name for name in found if name not in stock]
    if len(stock) != 1 or len(kjump) != 1:
        raise SystemExit(f"expected one stock kernel and one other, found {found}")
    return {"kjump": kjump[0], "stock": stock[0]}


def make_swap(disk: Path, offset: int, size: int) -> None:
    """Make a swap area in a disk that is a file: mkswap knows no offset."""
    with tempfile.NamedTemporaryFile(dir=disk.parent) as area:
        area.truncate(size)
        run("mkswap", "--quiet", "--uuid", SWAP_UUID, area.name)
        with disk.open("r+b") as file:
            file.seek(offset)
            file.write(area.read(4096))


def build_disk(root: Path, image: Path) -> Image:
    kernels = releases(root)
    (root / "boot/grub").mkdir(exist_ok=True)
    (root / "boot/grub/grub.cfg").write_text(GRUB_CFG.format(**kernels))
    core, system = MIB, 2 * MIB
    target = system + ROOT_SIZE
    disk = image.with_suffix(".raw")
    disk.unlink(missing_ok=True)
    with disk.open("xb") as file:
        file.truncate(target + TARGET_SIZE + SMALL_SIZE + SWAP_SIZE + SPARE_SIZE + MIB)
    small = target + TARGET_SIZE
    swap = small + SMALL_SIZE
    spare = swap + SWAP_SIZE
    layout = [
        (core, system, "ef02", "grub"),
        (system, target, "8304", "root"),
        (target, small, "8300", "kjump"),
        (small, swap, "8300", "small"),
        # No swap partition by its type: systemd-gpt-auto-generator(8) would switch it on.
        (swap, spare, "8300", "swap"),
        (spare, spare + SPARE_SIZE, "8300", "spare"),
    ]
    options: list[str] = []
    for number, (start, end, kind, name) in enumerate(layout, 1):
        options += ["-n", f"{number}:{start // 512}:{end // 512 - 1}"]
        options += ["-t", f"{number}:{kind}", "-c", f"{number}:{name}"]
    run("sgdisk", "-a", "1", *options, disk)
    run(
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-E",
        f"offset={system},lazy_itable_init=0",
        # The guest's e2fsprogs is newer than the host's, so the default features are fine there.
        "-d",
        root,
        disk,
        f"{ROOT_SIZE // 1024}k",
    )
    install_grub(disk, core, system - core)
    make_swap(disk, swap, SWAP_SIZE)
    part = image.with_suffix(".part")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, part)
    disk.unlink()
    part.rename(image)
    result = Image(image, target, TARGET_SIZE, kernels)
    result.save()
    return result


@contextmanager
def scratch_root(cache: Path, below: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=cache, prefix="root-") as name:
        root = Path(name)
        root.chmod(0o755)
        if below:
            unpack(below, root)
        yield root


def prune_snapshots(cache: Path) -> None:
    """Delete what guest.py keeps of guests that have booted, where it is old or of no image."""
    folders = sorted(cache.glob("booted-*/"), key=lambda path: path.stat().st_mtime, reverse=True)
    images = {path.stem for path in cache.glob("*.qcow2")}
    for number, folder in enumerate(folders):
        image = folder.name.removeprefix("booted-").rpartition("-")[0]
        if number >= KEPT_SNAPSHOTS or image not in images:
            shutil.rmtree(folder)
            folder.with_suffix(".lock").unlink(missing_ok=True)


def build(
    kernel: Path,
    deb: Path | None,
    *,
    swap: bool = False,
    more: str = "",
    suite: str = SUITE,
) -> Image:
    """The guest disk for this kernel package and this kjump package, from the cache or built.

    ``swap``: for the kernel's own hibernation, see `use_swap`.  ``more``: with what `MORE` has
    under this name.  ``suite``: Debian's release.
    """
    if os.geteuid() != 0:
        raise SystemExit("the guest image is built by root: it mounts and it makes device nodes")
    with tempfile.TemporaryDirectory(prefix="kjump-debs-") as name:
        # Copies: what a build is named by is what it contains, even if a package is remade now.
        kernel = Path(shutil.copy(kernel, name))
        deb = Path(shutil.copy(deb, name)) if deb else None
        return build_cached(cache_dir(), kernel, deb, swap, more, suite)


def build_cached(
    cache: Path, kernel: Path, deb: Path | None, swap: bool, more: str, suite: str
) -> Image:
    wanted = {*PACKAGES.split(), STOCK_KERNEL, *(dependencies(deb) if deb else ())}
    more_packages, more_files = MORE[more] if more else ("", {})
    wanted.update(more_packages.split())
    files = FILES | more_files
    packages = sorted(name for name in wanted if name != "dracut")
    plasma = (take_plasma, *PLASMA, PLASMA_PLUGIN) if more == DESKTOPS else ()
    base_key = digest(
        build_base, suite, " ".join(packages), " ".join(UNREAD), FILES[INITRAMFS_CONF], *plasma
    )
    kernels_key = digest(base_key, kernel, build_kernels, in_root)
    guest = (json.dumps(files), MASKED, GRUB_CFG, GRUB_MODULES)
    programs = [HERE / name for name in GUEST_PROGRAMS]
    layout = f"{ROOT_SIZE} {TARGET_SIZE} {SMALL_SIZE} {SWAP_SIZE} {SPARE_SIZE} {USER} {UID}"
    image_key = digest(
        kernels_key,
        build_system,
        build_disk,
        make_swap,
        install_grub,
        layout,
        *guest,
        *programs,
        deb or "",
        use_swap if swap else "",
    )
    base = cache / f"base-{base_key}.tar.zst"
    kernels = cache / f"kernels-{kernels_key}.tar.zst"
    kind = "swap" if swap else more or "guest"
    if suite != SUITE:
        kind = f"{suite}-{kind}"
    image = cache / f"{kind}-{image_key}.qcow2"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if image.exists():
            image.touch()
            return Image.load(image)
        if not kernels.exists():
            if not base.exists():
                log("guest image: the base system (Debian packages)")
                with scratch_root(cache, None) as root:
                    build_base(root, packages, suite)
                    if plasma:
                        take_plasma(root, suite)
                    pack(root, base)
            log("guest image: the kernel")
            with scratch_root(cache, base) as root:
                build_kernels(root, kernel)
                pack(root, kernels)
        log(f"guest image: the disk, with {deb.name if deb else 'no kjump package'}")
        with scratch_root(cache, kernels) as root:
            build_system(root, deb, files)
            if swap:
                use_swap(root)
            result = build_disk(root, image)
        prune(cache, f"{kind}-*.qcow2", KEPT_IMAGES)
        prune_snapshots(cache)
        prune(cache, "kernels-*.tar.zst", KEPT_BASES)
        prune(cache, "base-*.tar.zst", KEPT_BASES)
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the disk of a test guest.")
    parser.add_argument("--deb", type=Path, help="the kjump package; without it: a bare guest")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--swap", action="store_true", help="for the kernel's own hibernation")
    which.add_argument("--more", choices=MORE, default="", help="with more in it")
    parser.add_argument("--suite", default=SUITE, help="Debian's release, by its code name")
    parser.add_argument("--kernel", type=Path, required=True, help="kernel with KEXEC_JUMP")
    arguments = parser.parse_args()
    built = build(
        arguments.kernel,
        arguments.deb,
        swap=arguments.swap,
        more=arguments.more,
        suite=arguments.suite,
    )
    print(built.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
